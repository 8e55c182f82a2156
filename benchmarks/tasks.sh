#!/usr/bin/env bash
# Eight arms, two RL runs from each of the supervised models in benchmarks/stages, and the tables of docs/results.md over tasks:
# bash benchmarks/tasks.sh [TASK ...]. What is finished is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
tasks=(arithmetic countdown sudoku)
for task in "${@:-${tasks[@]}}"; do
  "$python" -m igpo_jax.compare --config="$task.py" --stages="benchmarks/stages/$task" --seeds=0..4 --rl_seeds=2 --jobs=2 \
    --arms=grpo,grpo_position_first_hot,igpo,igpo_tries,igpo_position_first_hot,igpo_position_first_hot_tries,best,best_grpo \
    --output="runs/tasks/$task"
  cp "runs/tasks/$task/comparison.json" "benchmarks/results/tasks/$task.json"
done
"$python" benchmarks/tasks.py
