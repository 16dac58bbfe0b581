#!/usr/bin/env bash
# SIGTERM to the run: it saves, and train.sh continues it. The slices stay, and cost, until delete.sh.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR
. ./settings.sh

everywhere 'sudo systemctl stop quintet'
