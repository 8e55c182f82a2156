#!/usr/bin/env bash
# RL for 500 updates: as in the paper, without the KL term, and without it and with a falling learning rate. Three seeds each, from
# the supervised stages of a comparison. Then the table:
# bash benchmarks/late_loss.sh [COMPARISON] [OUTPUT]
# COMPARISON: the folder of igpo_jax.compare --config=arithmetic.py --seeds=0..2 (default runs/compare)
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
comparison=${1:-runs/compare} output=${2:-runs/late_loss}
no_kl=(--config.objective.kl_coefficient=0.0)
for seed in 0 1 2; do
  for name in paper no-kl no-kl-decay; do
    case $name in
      paper) flags=() ;;
      no-kl) flags=("${no_kl[@]}") ;;
      no-kl-decay) flags=("${no_kl[@]}" --config.rl.optimizer.schedule=linear) ;;
    esac
    start=$comparison/seed-$seed/supervised folder=$output/$name-seed-$seed
    if [ ! -e "$folder" ]; then
      mkdir -p "$folder/checkpoints"
      cp -r "$start/checkpoints/sft" "$folder/checkpoints/"
      cp "$start/tokenizer.model" "$start/metrics.jsonl" "$start/evaluations.jsonl" "$folder/"
    fi
    "$python" -m igpo_jax.train --config=arithmetic.py --workdir="$folder" --config.seed="$seed" --config.rl.iterations=125 \
      --config.rl.keep_every=5 "${flags[@]}"
  done
done
"$python" benchmarks/late_loss.py "$output" benchmarks/results/late_loss.md
