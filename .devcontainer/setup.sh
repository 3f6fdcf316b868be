#!/usr/bin/env bash
# Makes .venv inside the devcontainer: the image's packages as they are, and the developers' tools beside them. make then takes it as set up.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d /opt/venv ] || { echo 'error: /opt/venv: no such directory, so this is not the devcontainer; run: make setup' >&2; exit 2; }
python3 -m venv .venv
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ls -d /opt/venv/lib/python3*/site-packages >"$packages/image.pth"
.venv/bin/python -m pip install --disable-pip-version-check --no-deps -r requirements/dev.lock # uv would not see image.pth
touch .venv/.base .venv/.dev
