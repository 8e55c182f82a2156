#!/usr/bin/env bash
# RL with exact and with cached, parallel rollouts, three seeds each, from the supervised stages of seeds.sh; then the table:
# bash benchmarks/cached_rollouts.sh [flags of igpo_jax.train]
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
run() { # name seed flags
  local start=runs/seeds/hints-$2 folder=runs/cached/$1-$2 seed=$2
  shift 2
  if [ ! -e "$folder" ]; then
    mkdir -p "$folder/checkpoints"
    cp -r "$start/checkpoints/sft" "$folder/checkpoints/"
    cp "$start/tokenizer.model" "$folder/"
    grep '"stage": "sft"' "$start/metrics.jsonl" > "$folder/metrics.jsonl"
  fi
  "$python" -m igpo_jax.train --config=arithmetic.py --workdir="$folder" --config.seed="$seed" \
    --config.rl.iterations=125 --config.rl.eval_every=25 --config.rl.checkpoint_every=25 "$@"
}
fast=(--config.sampler.cache=dual --config.sampler.commit=threshold)
for seed in 0 1 2; do
  run exact $seed "$@"
  run leftmost $seed "${fast[@]}" "$@"
  run most-confident $seed "${fast[@]}" --config.sampler.fallback=most_confident "$@"
done
"$python" benchmarks/cached_rollouts_table.py runs/cached benchmarks/results/cached_rollouts.md
