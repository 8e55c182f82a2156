#!/usr/bin/env bash
# Eight arms, two RL runs from each of the supervised models in benchmarks/stages, and their tables in docs/results.md:
# bash benchmarks/tasks.sh [TASK ...]. What is finished is kept. The table of second attempts needs all tasks, so it is only
# written if none is named.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
tasks=(arithmetic countdown)
for task in "${@:-${tasks[@]}}"; do
  "$python" -m igpo_jax.compare --config="$task.py" --stages="benchmarks/stages/$task" --seeds=0..4 --rl_seeds=2 --jobs=2 \
    --arms=grpo,grpo_position_first_hot,igpo,igpo_tries,igpo_position_first_hot,igpo_position_first_hot_tries,best,best_grpo \
    --output="runs/tasks/$task"
  cp "runs/tasks/$task/comparison.json" "benchmarks/results/tasks/$task.json"
  "$python" benchmarks/insert.py "runs/tasks/$task/comparison.md" docs/results.md "$task"
done
if [ $# -eq 0 ]; then
  "$python" benchmarks/tries.py benchmarks/results/tries.md "${tasks[@]/#/runs/tasks/}"
  "$python" benchmarks/insert.py benchmarks/results/tries.md docs/results.md tries
fi
