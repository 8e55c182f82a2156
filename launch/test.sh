#!/usr/bin/env bash
# Runs the tests on this machine, one process per core: bash launch/test.sh [--all] [flags of pytest]
# Without --all, tests that are marked slow are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh
marks="not slow"
if [ "${1:-}" = --all ]; then
  marks=""
  shift
fi
exec .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder -m "$marks" "$@"
