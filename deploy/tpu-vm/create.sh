#!/usr/bin/env bash
# Asks for the slices; they cost from the moment they are ACTIVE until delete.sh.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR
. ./settings.sh

if [ "$SLICES" -gt 1 ]; then
  nodes=(--node-count="$SLICES" --node-prefix="$NAME")
else
  nodes=(--node-id="$NAME")
fi
if [ "$SPOT" = yes ]; then
  nodes+=(--spot)
fi
gcloud compute tpus queued-resources create "$NAME" --project="$PROJECT" --zone="$ZONE" \
  --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${nodes[@]}"
