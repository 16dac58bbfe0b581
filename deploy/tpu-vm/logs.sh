#!/usr/bin/env bash
# What process 0 says, from the beginning and on; with --all the last lines of every host, for what went wrong.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR
. ./settings.sh

if [ "${1:-}" = --all ]; then
  # shellcheck disable=SC2016 # each host's own name
  everywhere 'sudo journalctl --unit=quintet --output=cat --lines=5 | sed "s/^/$(hostname): /"'
else
  first 'sudo journalctl --unit=quintet --output=cat --follow --no-tail'
fi
