#!/usr/bin/env bash
# Six arms, two RL runs from each of the supervised models in benchmarks/stages, and the table of second attempts in
# docs/results.md: bash benchmarks/tasks.sh [flags of igpo_jax.compare]. What is finished is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
"$python" -m igpo_jax.compare --config=arithmetic.py --stages=benchmarks/stages/arithmetic --seeds=0..4 --rl_seeds=2 --jobs=2 \
  --arms=grpo,grpo_position_first_hot,igpo,igpo_tries,igpo_position_first_hot,igpo_position_first_hot_tries \
  --output=runs/tasks/arithmetic "$@"
cp runs/tasks/arithmetic/comparison.json benchmarks/results/tasks/arithmetic.json
"$python" benchmarks/insert.py runs/tasks/arithmetic/comparison.md docs/results.md tasks
"$python" benchmarks/tries.py benchmarks/results/tries.md runs/tasks/arithmetic
"$python" benchmarks/insert.py benchmarks/results/tries.md docs/results.md tries
