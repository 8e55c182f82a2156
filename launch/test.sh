#!/usr/bin/env bash
# Runs the tests on this machine, one process per core: bash launch/test.sh [--all] [flags of pytest]
# Without --all, tests that are marked slow are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/options.sh
marks="not slow"
case "${1:-}" in
  --help | -h) help ;;
  --all) marks=""; shift ;;
esac
. launch/venv.sh
exec .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder -m "$marks" "$@"
