#!/usr/bin/env bash
# Runs the tests on this machine, one process per core: bash launch/test.sh [flags of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh
exec .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@"
