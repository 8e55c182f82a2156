#!/usr/bin/env bash
# All arms, five seeds, and the figure and the tables of README.md: bash benchmarks/compare.sh [flags of igpo_jax.compare]
# Needs launch/local.sh to have been run once. What is finished is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
"$python" -m igpo_jax.compare --config=arithmetic.py --arms=all --seeds=0..4 --jobs=2 --output=runs/compare "$@"
cp runs/compare/comparison.svg docs/comparison.svg
cp runs/compare/comparison.json benchmarks/results/comparison.json
"$python" benchmarks/insert.py runs/compare/comparison.md README.md comparison
