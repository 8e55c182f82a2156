#!/usr/bin/env bash
# Runs the tests on this machine: bash launch/test.sh [flags of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS=test
. launch/venv.sh
exec .venv/bin/python -m pytest "$@"
