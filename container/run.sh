#!/usr/bin/env bash
# Runs `python -m app` in the container: container/run.sh run stage1 --profile embedded. `make stage1` calls it.
# It needs only an engine. Results land in ./runs, owned by the caller; the exit code is the stage's; Ctrl-C and SIGTERM
# reach the stage, which writes a checkpoint first. Settings come from the environment, else from .env:
#
#   IMAGE        the image to run (prefill:local)
#   GPU          auto, none, all, or numbers such as 0,1 (auto: all of them where the engine can pass them on)
#   RUNS         where runs are kept (runs)
#   CACHE        a volume's name or a directory, for models, data and compiled kernels (prefill-cache)
#   MOUNTS       directories that a profile names, readable in the container under the same path
#   DOCKER_ARGS  more options for `docker run`, such as --network none or --memory 16g
#   DRY_RUN      1: print the command instead
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd -P)
# shellcheck source=container/dotenv.sh
. "$root/container/dotenv.sh"
dotenv "${ENV_FILE:-$root/.env}"
IMAGE=${IMAGE:-prefill:local} GPU=${GPU:-auto} RUNS=${RUNS:-runs} CACHE=${CACHE:-prefill-cache}

mountable() { # mountable PATH SETTING
  case $1 in *:*) die "$1" 'has a colon in it, which the engine takes for a separator' "name another path with $2" ;; esac
}

absolute() { # the absolute path of an existing file or directory
  (cd "$(dirname "$1")" && printf '%s/%s\n' "$(pwd -P)" "$(basename "$1")")
}

# ---- the engine and the image -------------------------------------------------------------------------------------------

find_image() { # sets engine, its properties, and id, the image's
  engine=$(docker info --format '{{.Driver}} {{json .SecurityOptions}} {{range $name, $_ := .Runtimes}}runtime={{$name}} {{end}}' 2>&1) ||
    die docker "no container engine answers ($(tail -n 1 <<<"$engine"))" 'start it, or use RUNNER=native'
  id=$(docker image inspect --format '{{.Id}}' "$IMAGE" 2>/dev/null) ||
    { docker pull "$IMAGE" >&2 && id=$(docker image inspect --format '{{.Id}}' "$IMAGE"); } ||
    die "$IMAGE" 'no such image here, and it cannot be pulled' 'build it with make image, or correct IMAGE'
}

# ---- the container's options ------------------------------------------------------------------------------------------

give() { # sets options, for `docker run`, and words, the command
  local stage=$1
  [ "$stage" != run ] || stage=${2:-run}
  stage=${stage//[^A-Za-z0-9_.-]/-}
  name="prefill-$stage-$$"
  # As vast/local/container.yaml describes it; tests/test_container.py compares the two.
  # shellcheck disable=SC2054 # the commas belong to the option
  options=(
    --label prefill.stage="$stage" --name "$name" --stop-timeout 300
    --read-only --tmpfs /tmp:rw,nosuid,nodev,mode=1777
    --cap-drop ALL --security-opt no-new-privileges --pids-limit 4096 --shm-size 1g
    --env PREFILL_IMAGE="$id"
  )

  # In a rootless engine the caller is the container's root; elsewhere a uid is the same inside and outside.
  case $engine in
  *name=rootless*) options+=(--user 0:0) ;;
  *) options+=(--user "$(id -u):$(id -g)") ;;
  esac
  label=
  case $engine in *name=selinux*) label=,z ;; esac

  mountable "$RUNS" RUNS
  mkdir -p "$RUNS" 2>/dev/null || die "$RUNS" 'cannot be made' 'choose another directory with RUNS'
  runs=$(cd "$RUNS" && pwd -P)
  if [ "$runs" = "$root/runs" ]; then # the default is `runs/...` inside as well, so that printed paths are valid outside
    options+=(--volume "$runs:/runs:rw$label" --workdir / --env PREFILL_RUNS=runs)
  else
    options+=(--volume "$runs:$runs:rw$label" --env PREFILL_RUNS="$runs")
  fi
  case $CACHE in
  */*)
    mountable "$CACHE" CACHE
    mkdir -p "$CACHE" 2>/dev/null || die "$CACHE" 'cannot be made' 'choose another directory or volume with CACHE'
    options+=(--volume "$(absolute "$CACHE"):/cache:rw$label")
    ;;
  *) # labelled as Compose's own volume, or Compose would warn
    compose=volume-label=com.docker.compose
    options+=(--mount "type=volume,source=$CACHE,target=/cache,$compose.project=prefill,$compose.volume=prefill-cache")
    ;;
  esac

  read -ra mounts <<<"${MOUNTS:-}"
  for path in ${mounts[@]+"${mounts[@]}"}; do
    [ -e "$path" ] || die "$path" 'does not exist' 'correct MOUNTS'
    mountable "$path" MOUNTS
    path=$(absolute "$path")
    options+=(--volume "$path:$path:ro$label")
  done
  if [ -n "${PREFILL_WHEELS:-}" ]; then
    [ -d "$PREFILL_WHEELS" ] || die "PREFILL_WHEELS=$PREFILL_WHEELS" 'no such directory' 'correct or unset it'
    options+=(--volume "$(absolute "$PREFILL_WHEELS"):/wheels:ro$label" --env PREFILL_WHEELS=/wheels)
  fi

  # A profile of the user's own is a file outside the container.
  words=()
  while [ $# -gt 0 ]; do
    if [ "$1" = --profile ] && [[ ${2:-} =~ (/|\.ya?ml$) ]] && [ -f "$2" ]; then # the rule of jobs/config/job.py for a path
      path=$(absolute "$2")
      options+=(--volume "$path:$path:ro$label")
      words+=("$1" "$path")
      shift 2
    else
      words+=("$1")
      shift
    fi
  done

  # By name, so that no list of processes shows a value.
  for variable in HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE WANDB_API_KEY PREFILL_HEALTH_SILENCE OMP_NUM_THREADS PREFILL_ARTIFACTS \
    ACCEPT_GEMMA_TERMS AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_ENDPOINT_URL AWS_DEFAULT_REGION; do
    [ -z "${!variable:-}" ] || options+=(--env "$variable")
  done
}

# ---- GPUs -----------------------------------------------------------------------------------------------------------------

give_gpus() { # adds to options
  if [ "$GPU" = auto ]; then
    GPU=none
    if [[ $engine == *runtime=nvidia* ]]; then
      if [ -n "${DOCKER_HOST:-}" ] || nvidia-smi -L >/dev/null 2>&1; then GPU=all; fi
    elif nvidia-smi -L >/dev/null 2>&1; then
      echo 'this machine has a GPU that its engine cannot pass on: install the NVIDIA container toolkit; continuing without it' >&2
    fi
  fi
  case $GPU in
  none) options+=(--env NVIDIA_VISIBLE_DEVICES=void) ;; # an engine whose default runtime is nvidia would pass on all
  all) options+=(--gpus all) ;;
  *[!0-9,]* | '' | ,* | *,) die "GPU=$GPU" 'expected auto, none, all, or numbers such as 0,1' 'correct it' ;;
  *) options+=(--gpus "\"device=$GPU\"") ;;
  esac
}

# ---- run, forward signals, explain the end ------------------------------------------------------------------------------

# shellcheck disable=SC2329 # called by the traps
signal() { # signal NAME to the container, which may still be starting. A bare `return` would return the status of `wait`
  for _ in $(seq 100); do
    if docker kill --signal "$1" "$name" >/dev/null 2>&1 || ! kill -0 "$client" 2>/dev/null; then return 0; fi
    sleep 0.1
  done
}

start() { # sets code
  trap 'docker rm "$name" >/dev/null 2>&1 || true' EXIT # not by force: if it still runs, something else went wrong
  code=0
  if [ -t 0 ] && [ -t 1 ]; then
    # In the background, so that a signal's trap runs at once; the terminal sends Ctrl-C as a key into the container.
    docker run --interactive --tty "${options[@]}" "$IMAGE" "${words[@]}" <&0 &
    client=$!
  else
    # In a process group of its own, so that a Ctrl-C reaches the container once, through our trap, and not twice.
    set -m
    docker run --sig-proxy=false "${options[@]}" "$IMAGE" "${words[@]}" </dev/null &
    client=$!
    set +m
  fi
  trap 'signal INT' INT
  trap 'signal TERM' TERM HUP
  while kill -0 "$client" 2>/dev/null; do
    wait "$client" || true # a signal interrupts `wait`, whose code is then the signal's
  done
  wait "$client" || code=$? # bash remembers the client's exit code
  # A closed terminal kills the client while the stage still writes its checkpoint.
  if [ "$(docker inspect --format '{{.State.Running}}' "$name" 2>/dev/null)" = true ]; then code=$(docker wait "$name"); fi
}

explain() { # the engine's exit codes; the stage explains its own
  local what="${words[*]:0:2}"
  case $code in
  137)
    if [ "$(docker inspect --format '{{.State.OOMKilled}}' "$name" 2>/dev/null)" = true ]; then
      echo "error: $what: killed, out of memory; give it more, or set train.micro_batch_size or score.batch_tokens lower" >&2
    else
      echo "error: $what: killed; the run counts as interrupted: RESUME=1 resumes it" >&2
    fi
    ;;
  125 | 126 | 127) echo "error: $IMAGE: the engine could not start it: see above. If it is about a GPU, GPU=none runs without one" >&2 ;;
  esac
}

main() { # a function, so that bash reads the whole file first: it may change while a stage runs for hours
  [ $# -gt 0 ] || set -- --help
  find_image
  give "$@"
  give_gpus
  read -ra more <<<"${DOCKER_ARGS:-}"
  options+=(${more[@]+"${more[@]}"})
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' docker run "${options[@]}" "$IMAGE" "${words[@]}"
    echo
    exit 0
  fi
  start
  explain
  exit "$code"
}

main "$@"
