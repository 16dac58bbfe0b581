#!/usr/bin/env bash
# Whether the slices are there (ACTIVE), wait (WAITING_FOR_RESOURCES) or were taken away (SUSPENDED), and what runs.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR
. ./settings.sh

state=$(gcloud compute tpus queued-resources describe "$NAME" --project="$PROJECT" --zone="$ZONE" \
  --format='value(state.state)')
echo "$NAME: $state"
if [ "$state" = ACTIVE ]; then
  # shellcheck disable=SC2016 # each host's own name
  everywhere 'echo "$(hostname): $(systemctl is-active quintet)"'
fi
