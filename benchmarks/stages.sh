#!/usr/bin/env bash
# Trains supervised stages and exports them to benchmarks/stages: bash benchmarks/stages.sh arithmetic.py countdown.py sudoku.py
# The committed ones were made in this way. Other CPUs round differently, so they get other models.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
for config in "$@"; do
  for seed in 0 1 2 3 4; do
    stage="${config%.py}/seed-$seed"
    [ -e "benchmarks/stages/$stage" ] && continue
    "$python" -m igpo_jax.train --config="$config" --workdir="runs/stages/$stage" --config.seed="$seed" --config.rl.iterations=0
    "$python" -m igpo_jax.convert --source="runs/stages/$stage" --target="benchmarks/stages/$stage" --format=huggingface
  done
done
