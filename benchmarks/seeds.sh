#!/usr/bin/env bash
# IGPO against the same run without hints, three seeds each, then the table: bash benchmarks/seeds.sh [flags of igpo_jax.train]
# Needs launch/local.sh to have been run once. Runs that are there already are continued or left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
for seed in 0 1 2; do
  with=runs/seeds/hints-$seed without=runs/seeds/no-hints-$seed
  "$python" -m igpo_jax.train --config=arithmetic.py --workdir=$with --config.seed=$seed "$@"
  # The supervised stage is the same, bit by bit, with and without hints: the second run starts from a copy of it.
  if [ ! -e $without ]; then
    mkdir -p $without/checkpoints
    cp -r $with/checkpoints/sft $without/checkpoints/
    cp $with/tokenizer.model $without/
    grep '"stage": "sft"' $with/metrics.jsonl > $without/metrics.jsonl
    sed '/"inpainting": {/,/}/ s/"enabled": true/"enabled": false/' $with/config.json > $without/config.json
  fi
  "$python" -m igpo_jax.train --config=arithmetic.py --workdir=$without --config.seed=$seed \
    --config.inpainting.enabled=False "$@"
done
"$python" benchmarks/seeds_table.py runs/seeds docs/results.md seeds
