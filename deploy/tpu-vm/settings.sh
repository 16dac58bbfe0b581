# shellcheck shell=bash disable=SC2034
# What the other scripts of this folder read. Change what is here, or give it in front of a command:
#   SLICES=2 ./create.sh

PROJECT=${PROJECT:-$(gcloud config get-value project 2>/dev/null)}
ZONE=${ZONE:-us-west4-a}
NAME=${NAME:-quintet}

ACCELERATOR=${ACCELERATOR:-v5litepod-16} # v5e by chips; v5p, v4 by cores, two a chip; v6e by chips
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}  # v5p: v2-alpha-tpuv5; v6e: v2-alpha-tpuv6e; v4: tpu-ubuntu2204-base
SLICES=${SLICES:-1}
SPOT=${SPOT:-yes} # cheaper, and may be taken away at any time; the same train.sh goes on afterwards

# One folder that all hosts see, IP:/SHARE of an NFS server; README.md makes one.
SHARE=${SHARE:-}
MOUNT=/mnt/quintet

# Your clone of Quintet, at an address from which the hosts may take it.
REPOSITORY=${REPOSITORY:-}
REVISION=${REVISION:-main}

# What runs on every host. Without a verb it is the whole recipe: process 0 prepares, all train, process 0 evaluates.
COMMAND=${COMMAND:-"train --config=experiments/quickstart.py --workdir=$MOUNT/runs/quickstart"}

# Runs a command on all hosts of all slices; of several slices 64 hosts at a time, so it must not wait for others.
everywhere() {
  if [ "$SLICES" -gt 1 ]; then
    gcloud compute tpus queued-resources ssh "$NAME" --project="$PROJECT" --zone="$ZONE" \
      --node=all --worker=all --command="$1"
  else
    gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=all --command="$1"
  fi
}

# Runs a command on the host of process 0.
first() {
  if [ "$SLICES" -gt 1 ]; then
    gcloud compute tpus queued-resources ssh "$NAME" --project="$PROJECT" --zone="$ZONE" \
      --node=0 --worker=0 --command="$1"
  else
    gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=0 --command="$1"
  fi
}
