#!/usr/bin/env bash
# Starts the run on all hosts, or continues it; returns at once. The run is a unit of systemd: it outlives the
# connection, and a host that is taken away gives it a SIGTERM, on which all save and stop after the same step.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR
. ./settings.sh
: "${SHARE:?set SHARE=IP:/NAME of the file server, see README.md}"

everywhere "
set -e
mountpoint -q $MOUNT || sudo mount -t nfs -o hard $SHARE $MOUNT
sudo systemctl reset-failed quintet 2>/dev/null || true
sudo systemd-run --quiet --unit=quintet --uid=\$(id -u) --gid=\$(id -g) --working-directory=\$HOME/quintet \
  --property=TimeoutStopSec=600 --property=SuccessExitStatus=143 --setenv=HOME=\$HOME --setenv=PYTHONUNBUFFERED=1 \
  \$HOME/quintet/.venv/bin/python launch.py $COMMAND
"
