#!/usr/bin/env bash
# Runs the tests on this machine: bash launch/test.sh [--all] [flags of pytest]
# There is one process more than there are cores, because tests wait for the processes that they start.
# Without --all, tests that are marked slow are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh
marks="not slow"
if [ "${1:-}" = --all ]; then
  marks=""
  shift
fi
exec .venv/bin/python -m pytest --numprocesses="$(($(nproc) + 1))" --dist=loadfile --no-loadscope-reorder -m "$marks" "$@"
