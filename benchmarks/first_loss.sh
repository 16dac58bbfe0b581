#!/usr/bin/env bash
# Seconds from a fresh clone to the first training loss and to the end of the quickstart, with pip's cache empty, and
# the same again once installed; then the time of --help. Works on a clone of the last commit in a temporary folder and
# prints a table. KEEP=DIR (absolute) copies the runs there.
set -euo pipefail
cd "$(dirname "$0")/.."
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT
git clone --quiet . "$clone/quintet"
cd "$clone/quintet"

now() { date +%s.%N; }
since() { echo "$(now) $1" | awk '{printf "%.0f", $1 - $2}'; }

run() { # name, command: first loss and end, in seconds
    local name=$1 began metrics=runs/quickstart/train/metrics.jsonl
    shift
    rm -rf runs
    began=$(now)
    "$@" >"$clone/log" 2>&1 &
    local process=$!
    until [ -s "$metrics" ]; do
        kill -0 "$process" 2>/dev/null || { cat "$clone/log"; exit 1; }
        sleep 0.1
    done
    local first
    first=$(since "$began")
    wait "$process"
    echo "| $name | $first | $(since "$began") |"
    [ -z "${KEEP:-}" ] || { mkdir -p "$KEEP" && cp -r runs/quickstart "$KEEP/"; }
}

echo "| from | first loss, s | whole quickstart, s |"
echo "|---|---|---|"
run "a fresh clone, pip's cache empty" env PIP_NO_CACHE_DIR=1 make quickstart
run "installed" make quickstart
began=$(now)
.venv/bin/python launch.py --help >"$clone/help"
echo
echo "launch.py --help: $(echo "$(now) $began" | awk '{printf "%.2f", $1 - $2}') s"
echo "$(nproc) cores, $(.venv/bin/python --version), $(.venv/bin/python -m pip list 2>/dev/null | tail -n +3 | grep -vc -E '^(pip|setuptools) ') packages"
