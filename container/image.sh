#!/usr/bin/env bash
# Builds, pushes and measures the image: container/image.sh build|ready|host|push|size|sbom|audit. `make image` and others call it.
#
# Settings come from the environment, else from .env:
#
#   IMAGE         the image's name (prefill:local)
#   VARIANT       cpu, cuda or compat, which is cuda for hosts with an older driver too (cpu where WHEELS_IMAGE or PIP_CONF is given, else cuda, which any package index has)
#   COMPAT_DEB    for compat: the file of the package that the Dockerfile names, from NVIDIA's repository for Ubuntu 24.04
#   BASE_IMAGE, WHEELS_IMAGE   see the Dockerfile
#   PIP_CONF      a pip.conf with further places for wheels; used while building, not kept in the image
#   COMPRESSION   of pushed layers: gzip (the default), or zstd, where the engine's image store is containerd's
#   BUILD_ARGS    more options for `docker build`, such as --no-cache
#   AUDIT_ARGS    more options for pip-audit, such as --ignore-vuln ID
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=container/dotenv.sh
. container/dotenv.sh
dotenv "${ENV_FILE:-.env}"

IMAGE=${IMAGE:-prefill:local}
if [ -z "${VARIANT:-}" ]; then
  VARIANT=cuda
  [ -z "${WHEELS_IMAGE:-}${PIP_CONF:-}" ] || VARIANT=cpu
fi
CPU_LIMIT=1050000000 # bytes, of the cpu variant

# Whether the tree differs from its commit. Ignored files count in the directories that go into the image.
dirty() {
  [ -n "$(git status --porcelain 2>/dev/null)" ] ||
    git status --porcelain --ignored -- app jobs vast container requirements 2>/dev/null | grep -qvE '(__pycache__|\.egg-info)/$'
}

commit() { # of HEAD, with +dirty if the tree differs from it
  local head
  head=$(git rev-parse HEAD 2>/dev/null) || { echo unknown && return; }
  if dirty; then echo "$head+dirty"; else echo "$head"; fi
}

source_address() { # the code's public address, without a user name or password
  local address
  address=$(git config --get remote.origin.url 2>/dev/null) || return 0
  case $address in
  https://*) sed -E 's#//[^/]*@#//#' <<<"$address" ;;
  *) ;;
  esac
}

require_engine() {
  docker version >/dev/null 2>&1 || die docker 'no container engine answers' 'start it, or use RUNNER=native'
}

build() { # build TARGET TAG...
  local target=$1 tag options
  shift
  case $VARIANT in cpu | cuda | compat) ;; *) die "VARIANT=$VARIANT" 'expected cpu, cuda or compat' 'correct it' ;; esac
  require_engine
  options=(--target "$target" --build-arg VARIANT="${VARIANT/compat/cuda}" --build-arg COMMIT="$(commit)" --build-arg SOURCE="$(source_address)"
    --build-arg VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)"
    --build-arg SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}")
  if [ "$VARIANT" = compat ]; then
    [ -f "${COMPAT_DEB:-}" ] || die "COMPAT_DEB=${COMPAT_DEB:-}" 'is no file' "download the package that the Dockerfile names as COMPAT_PACKAGE from NVIDIA's CUDA repository for Ubuntu 24.04"
    options+=(--build-arg COMPAT=-compat --build-context "compat=$(dirname "$COMPAT_DEB")")
  fi
  [ -z "${BASE_IMAGE:-}" ] || options+=(--build-arg BASE_IMAGE="$BASE_IMAGE")
  [ -z "${WHEELS_IMAGE:-}" ] || options+=(--build-arg WHEELS_IMAGE="$WHEELS_IMAGE")
  [ -z "${PIP_CONF:-}" ] || options+=(--secret "id=pip.conf,src=$PIP_CONF")
  for tag in "$@"; do options+=(--tag "$tag"); done
  read -ra more <<<"${BUILD_ARGS:-}"
  log=$(mktemp) # global: the trap runs outside
  trap 'rm -f "$log"' RETURN EXIT
  show=/dev/null # a first build takes minutes: show its progress on a terminal
  if [ -t 2 ] && ! docker image inspect "$1" >/dev/null 2>&1; then show=/dev/stderr; fi
  if ! DOCKER_BUILDKIT=1 docker build --progress plain "${options[@]}" ${more[@]+"${more[@]}"} . 2>&1 | tee "$log" >"$show"; then
    [ "$show" = /dev/stderr ] || tail -n 30 "$log" >&2
    if grep -q 'failed to resolve source metadata' "$log"; then
      die "${BASE_IMAGE:-debian}" 'the base image is not here and cannot be fetched' 'connect to its registry, name one that is here as BASE_IMAGE, or run stages without an image: RUNNER=native'
    fi
    if [ "$VARIANT" = cpu ] && [ -z "${WHEELS_IMAGE:-}${PIP_CONF:-}" ]; then
      die 'VARIANT=cpu' 'the package index has torch with CUDA only' \
        "name PyTorch's index for the CPU in a file as extra-index-url and give it as PIP_CONF, or use VARIANT=cuda; RUNNER=native needs no image"
    fi
    die Dockerfile 'the image cannot be built' 'see above; RUNNER=native runs stages without it'
  fi
}

build_local() {
  local weight='1.0 GB'
  require_engine # before the message that asks to wait for minutes
  [ "$VARIANT" = cpu ] || weight='5.5 GB, of which 2.9 are downloaded'
  docker image inspect "$IMAGE" >/dev/null 2>&1 || echo "building $IMAGE, variant $VARIANT, $weight: minutes, this once" >&2
  build image "$IMAGE"
}

case ${1:-} in
build) build_local ;;
host) build host "$IMAGE-host" ;; # the variant for rented machines: see push
ready) # for run.sh: a local image is rebuilt from the code; an image from elsewhere stays as it is
  [ "$IMAGE" != prefill:local ] || build_local
  ;;
push)
  [[ $IMAGE == */* ]] || die "IMAGE=$IMAGE" 'names no registry' 'give make push IMAGE=registry/name:tag'
  [[ $IMAGE != *:latest ]] || die "IMAGE=$IMAGE" 'latest says nothing about what is in it' 'name a version'
  case ${COMPRESSION:-gzip} in
  gzip) ;;
  zstd)
    require_engine
    # Other engines silently ignore these options and push gzip.
    [[ $(docker info --format '{{.DriverStatus}}') == *io.containerd.snapshotter* ]] ||
      die 'COMPRESSION=zstd' 'this engine pushes gzip only' "turn on its containerd image store, or leave COMPRESSION out"
    # With a provenance beside it the image would be pushed as an index.
    BUILD_ARGS+=' --provenance=false --output type=image,compression=zstd,force-compression=true,oci-mediatypes=true'
    ;;
  *) die "COMPRESSION=$COMPRESSION" 'expected gzip or zstd' 'correct it' ;;
  esac
  head=$(git rev-parse HEAD 2>/dev/null) || die "$(pwd)" 'is not a git repository, so the image could not name its commit' 'clone it'
  ! dirty || die "$(pwd)" 'the tree differs from its commit, which could not be found again' 'commit first'
  name=$IMAGE
  [[ ${IMAGE##*/} != *:* ]] || name=${IMAGE%:*}
  [[ ${IMAGE##*/} == *:* ]] || IMAGE=$name:$head
  # The same layers twice: for a workstation, whose user is not root, and for a rented machine, whose ssh server must be.
  for target in image host; do
    suffix=
    [ "$target" = image ] || suffix=-host
    build "$target" "$IMAGE$suffix" "$name:$head$suffix"
    for tag in $(printf '%s\n' "$IMAGE$suffix" "$name:$head$suffix" | sort -u); do
      docker push --quiet "$tag" >/dev/null || die "$tag" 'cannot be pushed' 'see above; docker login may help'
    done
    digest=$(docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$IMAGE$suffix" | grep -F "$name@" | head -n 1)
    echo "$digest $target"
  done
  ;;
size)
  bytes=$(docker image inspect --format '{{.Size}}' "$IMAGE" 2>/dev/null) || die "$IMAGE" 'no such image' 'build it: make image'
  variant=$(docker image inspect --format '{{index .Config.Labels "org.opencontainers.image.version"}}' "$IMAGE")
  variant=${variant##*+}
  printf '%s (%s): %d MB\n\n' "$IMAGE" "$variant" $((bytes / 1000000))
  docker history --format '{{.Size}}\t{{.CreatedBy}}' "$IMAGE" | grep -v '^0B' | cut -c 1-110
  printf '\nthe largest packages in it, in MB:\n'
  docker run --rm --entrypoint /bin/sh "$IMAGE" -c \
    'cd /opt/venv/lib/python3.11/site-packages && du --apparent-size -s -B 1000000 -- */ | sort -rn | head -n 15'
  [ "$variant" != cpu ] || [ "$bytes" -le $CPU_LIMIT ] ||
    die "$IMAGE" "$bytes bytes are more than the $CPU_LIMIT that the cpu variant may have" 'see container/slim.sh'
  ;;
sbom | audit)
  tools="prefill:tools-$VARIANT"
  build tools "$tools"
  if [ "$1" = sbom ]; then
    docker run --rm "$tools" cyclonedx-py environment --output-reproducible --spec-version 1.6 --of JSON /opt/venv
    exit
  fi
  # By name and version, without the build: no service knows torch 2.13.0+cpu.
  installed="pip list --path /opt/venv/lib/python3.11/site-packages --format freeze | sed 's/+.*//' >/tmp/installed"
  said=$(mktemp)
  trap 'rm -f "$log" "$said"' EXIT
  # shellcheck disable=SC2086 # AUDIT_ARGS are words
  if docker run --rm "$tools" sh -c "$installed && exec \"\$@\"" - \
    pip-audit --strict --progress-spinner off --disable-pip --no-deps -r /tmp/installed ${AUDIT_ARGS:-} 2>"$said"; then
    tail -n 1 "$said" >&2
  elif grep -qE '^Found [0-9]+ known vulnerabilit' "$said"; then
    die "$tools" "$(tail -n 1 "$said")" 'see above; raise the version in pyproject.toml and run make lock'
  else
    die "$tools" "not audited: $(tail -n 1 "$said")" 'run it where the vulnerability service answers, or name another with AUDIT_ARGS'
  fi
  ;;
*) die "${1:-no command}" 'expected build, ready, host, push, size, sbom or audit' 'see the head of container/image.sh' ;;
esac
