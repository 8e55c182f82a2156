#!/usr/bin/env bash
# Eight arms, two RL runs from each of the supervised models in benchmarks/stages, and their tables in docs/results.md:
# bash benchmarks/tasks.sh [TASK ...]. What is finished is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
[ $# -gt 0 ] || set -- arithmetic countdown
for task in "$@"; do
  "$python" -m igpo_jax.compare --config="$task.py" --stages="benchmarks/stages/$task" --seeds=0..4 --rl_seeds=2 --jobs=2 \
    --arms=grpo,grpo_position_first_hot,igpo,igpo_tries,igpo_position_first_hot,igpo_position_first_hot_tries,best,best_grpo \
    --output="runs/tasks/$task"
  cp "runs/tasks/$task/comparison.json" "benchmarks/results/tasks/$task.json"
  "$python" benchmarks/insert.py "runs/tasks/$task/comparison.md" docs/results.md "$task"
done
"$python" benchmarks/tries.py benchmarks/results/tries.md "${@/#/runs/tasks/}"
"$python" benchmarks/insert.py benchmarks/results/tries.md docs/results.md tries
