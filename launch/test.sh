#!/usr/bin/env bash
# Runs the tests on this machine: bash launch/test.sh [--all] [flags of pytest]
# Without --all, tests that are marked slow are left out. There is one process per core, and with --all two more, because many
# slow tests wait for the processes that they start.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/options.sh
marks="not slow" more=0
case "${1:-}" in
  --help | -h) help ;;
  --all) marks="" more=2; shift ;;
esac
. launch/venv.sh
unset PYTHONDONTWRITEBYTECODE  # tests start many processes, which would all compile the package again
processes=$(.venv/bin/python -c "import os; print(os.cpu_count() + $more)")
exec .venv/bin/python -m pytest --numprocesses="$processes" --dist=loadfile --no-loadscope-reorder -m "$marks" "$@"
