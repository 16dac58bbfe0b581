#!/usr/bin/env bash
# On every host: the shared folder, Python 3.12 (the images have 3.10), Quintet and JAX for TPUs. May be run again.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR
. ./settings.sh
: "${SHARE:?set SHARE=IP:/NAME of the file server, see README.md}"
: "${REPOSITORY:?set REPOSITORY to the address of your clone of Quintet}"

everywhere "
set -e
command -v mount.nfs >/dev/null || { sudo apt-get update -q && sudo apt-get install -yq nfs-common; }
sudo mkdir -p $MOUNT
mountpoint -q $MOUNT || sudo mount -t nfs -o hard $SHARE $MOUNT
sudo chmod 1777 $MOUNT
[ -d ~/quintet ] || git clone --quiet $REPOSITORY ~/quintet
cd ~/quintet
git fetch --quiet origin
git checkout --quiet --detach \"\$(git rev-parse --verify --quiet origin/$REVISION || echo $REVISION)\"
[ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -d .venv ] || ~/.local/bin/uv venv --quiet --python=3.12 .venv
~/.local/bin/uv pip install --quiet --python=.venv/bin/python --editable '.[tpu,hf,chat]'
"
