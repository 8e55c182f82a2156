#!/usr/bin/env bash
# Everything that is checked and measured on one GPU, in one call under ten minutes, without network:
#   OUT=folder PYTHON=python3 bash benchmarks/gpu.sh
# Needs the package's requirements for CUDA (BUILD.md). What fails is named in summary.txt; the rest is run all the same.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
out="$(realpath -m "${OUT:-benchmarks/results}")"
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" JAX_PLATFORMS=cuda PYTHONUNBUFFERED=1
mkdir -p "$out"
: > "$out/summary.txt"
failed=0

step() { # name, seconds at most, command
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  timeout "$limit" "$@" > "$out/$name.txt" 2>&1
  local status=$?
  [ $status = 0 ] || failed=1
  echo "$name: exit $status after $((SECONDS - begin)) s" | tee -a "$out/summary.txt"
  tail -n 40 "$out/$name.txt"
}

"$python" -c 'import jax; assert jax.default_backend() == "gpu"; print(jax.devices())' || { echo "error: jax finds no GPU" >&2; exit 1; }

step update 120 "$python" benchmarks/update.py --width 2048 --heads 16 --prompt-length 256 --completion-length 256 \
  --dtype bfloat16 --repetitions 10 --output "$out/update-gpu.json"
step rollout 120 "$python" benchmarks/rollout.py --width 2048 --heads 16 --prompt-length 256 --rows 8 --steps 64 \
  --dtype bfloat16 --output "$out/rollout-gpu.json"
step train 150 "$python" -m igpo_jax.train --config=arithmetic.py --workdir="$(mktemp -d)/run" \
  --config.sft.updates=300 --config.rl.iterations=3 --config.rl.eval_every=0 --config.evaluation.problems=125
step parity 120 "$python" tests/llada_parity.py tests/model/fixtures/llada_tiny
# Tests of meshes need eight devices; they run on emulated ones, on the CPU (launch/test.sh). Products in full float32.
if "$python" -c 'import pytest' 2>/dev/null; then
  JAX_DEFAULT_MATMUL_PRECISION=highest step tests 180 "$python" -m pytest -m "not slow" \
    tests/rl tests/diffusion tests/model/test_lora.py tests/test_inference.py \
    -k "not mesh and not compiled_once and not lie_where and not tied_head and not log_softmax"
fi
exit $failed
