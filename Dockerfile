# The trainer, the evaluator and the host-side runner in one image, for a workstation and for a rented machine.
# `make image` builds it; docs/containers.md explains it.
#
#   BASE_IMAGE    a Debian with apt; Python 3.11 comes from it or from its packages
#   WHEELS_IMAGE  an image that holds wheels that the package index lacks, such as torch for the CPU; without it, none
#   VARIANT       cuda: torch with the CUDA libraries of its own wheels, and a compiler for Triton. cpu: neither
#   COMPAT        -compat, with cuda: also NVIDIA's forward compatibility package, for hosts with an older driver
#
# hadolint's findings and why they stay:
# DL3006: the tag of an image that an argument names is part of that argument
# DL3008: Debian's archive keeps only the newest version of a package, so a pinned version soon disappears
# DL3009: the stage with the compiler's tools is not part of the image
ARG BASE_IMAGE=debian:bookworm-slim
ARG WHEELS_IMAGE=scratch
ARG VARIANT=cuda
ARG COMPAT=
# The needs of the cuda variant's torch, for the labels; a test compares them with the lock, the build with torch.
ARG CUDA=13.0
ARG DRIVER=580
ARG CAPABILITIES="7.5 8.0 8.6 9.0 10.0 12.0"

# hadolint ignore=DL3006
FROM ${WHEELS_IMAGE} AS wheels

# ---- what changes with Debian -----------------------------------------------------------------------------------------

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS system-cpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Logs, caches with dates and the package's ssh host keys are removed: a host makes its own keys at its start.
# The date is fixed, so that two builds have equal contents.
# hadolint ignore=DL3008
RUN export SOURCE_DATE_EPOCH=0 DEBIAN_FRONTEND=noninteractive; \
    echo 'Acquire::Retries "10";' >/etc/apt/apt.conf.d/80-retries; \
    apt-get update -qq; \
    apt-get install -yqq --no-install-recommends bash ca-certificates openssh-server python3 python3-venv rsync tini; \
    useradd --uid 1000 --home-dir /tmp --no-create-home --shell /bin/bash prefill; \
    rm -rf /etc/ssh/ssh_host_* /etc/*- /var/lib/apt/lists/* /var/lib/dpkg/*-old /var/cache/* /var/log/* /tmp/*; \
    mkdir -p /var/cache/apt/archives/partial

FROM system-cpu AS system-cuda
# hadolint ignore=DL3008
RUN export SOURCE_DATE_EPOCH=0 DEBIAN_FRONTEND=noninteractive; \
    apt-get update -qq; \
    apt-get install -yqq --no-install-recommends gcc libc6-dev python3-dev; \
    rm -rf /etc/*- /var/lib/apt/lists/* /var/lib/dpkg/*-old /var/cache/* /var/log/* /tmp/*; \
    mkdir -p /var/cache/apt/archives/partial
ARG CUDA
ARG DRIVER
ARG CAPABILITIES
LABEL prefill.needs.cuda="${CUDA}" prefill.needs.driver="${DRIVER}" prefill.needs.compute-capabilities="${CAPABILITIES}"

# libcuda of a newer driver, 41 to 57 MB packed: container/prefill puts it first where the host's own is too old. NVIDIA supports
# that on data center GPUs, from driver 535 on. --build-context compat=DIRECTORY has the package.
FROM scratch AS compat
FROM system-cpu AS newer-libcuda
ARG COMPAT_PACKAGE=cuda-compat-13-0_580.178.04-1ubuntu1_amd64.deb
ARG COMPAT_SHA256=f7e29a545c1334bb5ca4b054213de9c9ceb70f8bf561aa214075020c4e0b60cf
RUN --mount=type=bind,from=compat,target=/compat \
    [ "$(sha256sum <"/compat/${COMPAT_PACKAGE}")" = "${COMPAT_SHA256}  -" ]; \
    dpkg -x "/compat/${COMPAT_PACKAGE}" /tmp/compat; mv /tmp/compat/usr/local/cuda-13.0/compat /cuda-compat

FROM system-cuda AS system-cuda-compat
COPY --link --from=newer-libcuda /cuda-compat /usr/local/cuda-compat
LABEL prefill.compat.cuda="12.2" prefill.compat.driver="535"

# ---- what changes with the lock ---------------------------------------------------------------------------------------

FROM system-cpu AS packages
ARG VARIANT
# hadolint ignore=DL3008,DL3009
RUN apt-get update -qq; apt-get install -yqq --no-install-recommends binutils
COPY requirements/image-${VARIANT}.lock /tmp/image.lock
# The installing pip is not the installed one, which is in the lock like everything else. A secret named pip.conf gives further
# places for wheels; it leaves no trace in the image. Ten tries outlast four minutes without the index.
RUN --mount=type=bind,from=wheels,target=/opt/wheels \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    export PIP_FIND_LINKS=/opt/wheels; \
    python3 -m venv /tmp/installer; \
    python3 -m venv --without-pip /opt/venv; \
    /tmp/installer/bin/pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: --no-cache-dir \
        --retries 10 --no-compile --disable-pip-version-check --progress-bar off --quiet -r /tmp/image.lock
COPY container/slim.sh /tmp/slim.sh
RUN /tmp/slim.sh "${VARIANT}" /opt/venv/lib/python3.11/site-packages
ARG CUDA
ARG CAPABILITIES
RUN [ "${VARIANT}" = cpu ] || /opt/venv/bin/python -B -c 'import sys, torch; \
    kernels = [f"{one[3:-1]}.{one[-1]}" for one in torch._C._cuda_getArchFlags().split() if one.startswith("sm_")]; \
    found = " ".join([torch.version.cuda, *kernels]); \
    found == sys.argv[1] or sys.exit(f"CUDA and CAPABILITIES: torch has {found}; correct them")' "${CUDA} ${CAPABILITIES}"

# The tools of `make sbom` and `make audit`, apart from the packages that they inspect. Not part of the image.
FROM packages AS tools
COPY requirements/image-tools.lock /tmp/tools.lock
RUN python3 -m venv /opt/tools; \
    /opt/tools/bin/pip install --require-hashes --only-binary :all: --no-cache-dir --disable-pip-version-check \
        --retries 10 --progress-bar off --quiet -r /tmp/tools.lock
ENV PATH=/opt/tools/bin:$PATH HOME=/tmp
USER 1000:1000

# ---- what changes with the code ---------------------------------------------------------------------------------------

FROM packages AS code
COPY app /opt/prefill/app
COPY jobs /opt/prefill/jobs
COPY vast /opt/prefill/vast
# The modes come from a checkout, which may be private to its owner.
RUN chmod -R u=rwX,go=rX /opt/prefill; \
    SOURCE_DATE_EPOCH=0 python3 -m compileall -q --invalidation-mode unchecked-hash /opt/prefill

# hadolint ignore=DL3006
FROM system-${VARIANT}${COMPAT} AS image
COPY --link --from=packages /opt/venv /opt/venv
COPY --link --chmod=644 container/sshd.conf /etc/ssh/sshd_config.d/prefill.conf
COPY --link --chmod=755 container/prefill /usr/local/bin/prefill
# Any uid may write here: a run directory in /runs, each kind of cache in its own place.
RUN install -d -m 1777 /runs /cache /cache/prefill /cache/huggingface /cache/huggingface/hub /cache/compiled
COPY --link --from=code /opt/prefill /opt/prefill
WORKDIR /opt/prefill

ARG COMMIT=unknown
ARG VERSION=unknown
ARG SOURCE=
ARG VARIANT
ARG COMPAT
ARG DRIVER
COPY --chmod=644 <<BUILD /opt/prefill/build.env
PREFILL_COMMIT=${COMMIT}
PREFILL_VERSION=${VERSION}
PREFILL_VARIANT=${VARIANT}${COMPAT}
PREFILL_DRIVER=${DRIVER}
BUILD

LABEL org.opencontainers.image.title="prefill" \
      org.opencontainers.image.description="Prefix-LM experiments: trainer, evaluator and host-side runner" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.version="${VERSION}+${VARIANT}${COMPAT}" \
      prefill.needs.cpu="amd64"
# No HOME: a host of the ssh kind runs as root and looks for ~/.ssh; `prefill` finds one that can be written to.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/prefill \
    PREFILL_RUNS=/runs PREFILL_CACHE=/cache/prefill HF_HOME=/cache/huggingface \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
# Whether the stage in this container makes progress, and its GPUs answer; a container without a stage or a GPU is healthy. The time
# is for the one product of each GPU after the start, which loads torch.
HEALTHCHECK --interval=30s --timeout=90s --start-period=120s --retries=2 CMD ["/usr/bin/python3", "-m", "vast.host.health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "prefill"]
CMD ["--help"]

# ---- with TensorBoard -------------------------------------------------------------------------------------------------

# What `report_to: [tensorboard]` writes with and is read by: `docker compose up track`. Not in the image, which rented machines load.
FROM image AS track
USER 0:0
COPY requirements/image-track.lock /tmp/track.lock
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --require-hashes --only-binary :all: --no-deps --no-cache-dir --no-compile --disable-pip-version-check \
        --retries 10 --progress-bar off --quiet --root-user-action ignore -r /tmp/track.lock
USER 1000:1000

# ---- for a rented machine ---------------------------------------------------------------------------------------------

# A host of the ssh kind replaces the entrypoint by an ssh server, which must run as root. The layers are the same.
# DL3002: so the last user here is root; only such a host gets this image.
FROM image AS host
# hadolint ignore=DL3002
USER 0:0

# The default target.
FROM image AS default
USER 1000:1000
