#!/usr/bin/env bash
# Eighteen arms, five seeds, and the figure and tables of docs/results.md: bash benchmarks/compare.sh [flags of igpo_jax.compare]
# Needs launch/local.sh to have been run once. What is finished is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
"$python" -m igpo_jax.compare --config=arithmetic.py --arms=grpo,resample,dapo,igpo,igpo_ref,full_hint,small_chunks,curriculum,all_hint_tokens,own_hints,igpo_few,grpo_few,grpo_position_first,igpo_position_first,grpo_hot,igpo_hot,grpo_position_first_hot,igpo_position_first_hot --seeds=0..4 --jobs=2 --output=runs/compare "$@"
cp runs/compare/comparison.svg docs/comparison.svg
cp runs/compare/comparison.json benchmarks/results/comparison.json
"$python" benchmarks/readme.py
"$python" benchmarks/insert.py runs/compare/comparison.md docs/results.md comparison
