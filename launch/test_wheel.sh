#!/usr/bin/env bash
# Builds a wheel, installs it with its dependencies into a new environment, and trains for two updates in an empty folder:
# bash launch/test_wheel.sh. Needs a package index. Environment: PYTHON, the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/options.sh
case "${1:-}" in --help | -h) help ;; esac
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/source" "$folder/empty"
cp -r README.md LICENSE setup.py pyproject.toml igpo_jax configs "$folder/source"  # without build/, which may have old modules
"${PYTHON:-python3}" -m venv "$folder/venv"
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$folder/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$folder" "$folder/source"
"$folder/venv/bin/pip" install --quiet "$folder"/*.whl
cd "$folder/empty"
"$folder/venv/bin/igpo" train --config=arithmetic --config.sft.updates=2 --config.sft.batch_size=8 \
  --config.rl.iterations=1 --config.rl.prompts=2 --config.evaluation.problems=8 --config.evaluation.batch_size=8
test -s runs/arithmetic/result.json
