#!/usr/bin/env bash
# Everything that is checked and measured on one GPU, in one call under ten minutes, without network:
#   OUT=folder PYTHON=python3 bash benchmarks/gpu.sh
# Needs the package's requirements for CUDA (BUILD.md). What fails is named in summary.txt; the rest is run all the same.
# Without a GPU it runs small shapes on the CPU: whether the script works, no measurements.
set -uo pipefail
[ $# = 0 ] || { echo "error: $1: this script has no flags" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
out="$(realpath -m "${OUT:-benchmarks/results}")"
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
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

train() { # flags
  step train 90 "$python" -m igpo_jax.train --config="$config" --workdir="$(mktemp -d)/run" --config.rl.eval_every=0 "$@"
}

# As the package's commands do (igpo_jax/runtime/host.py); scripts and tests do not.
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 XLA_FLAGS="--xla_gpu_enable_triton_gemm=false ${XLA_FLAGS:-}"
# The CPU is there to compare with.
if JAX_PLATFORMS=cuda,cpu "$python" -c 'import jax; assert jax.default_backend() == "gpu"' 2>/dev/null; then
  export JAX_PLATFORMS=cuda,cpu
  device=gpu
else
  export JAX_PLATFORMS=cpu
  device=cpu
fi
"$python" -c 'import jax; print(jax.__version__, jax.devices())' | tee -a "$out/summary.txt"

if [ $device = gpu ]; then
  for attention in xla cudnn; do
    step "llada_8b-$attention" 120 "$python" benchmarks/llada_8b.py --attention=$attention \
      --output "$out/llada_8b-$attention-gpu.json"
  done
  step predicted 30 "$python" benchmarks/predicted.py "$out"/llada_8b-*-gpu.json
  step update 45 "$python" benchmarks/update.py --width 2048 --heads 16 --prompt-length 256 --completion-length 256 \
    --dtype bfloat16 --repetitions 10 --output "$out/update-gpu.json"
  step rollout 45 "$python" benchmarks/rollout.py --width 2048 --heads 16 --prompt-length 256 --rows 8 --steps 64 \
    --dtype bfloat16 --output "$out/rollout-gpu.json"
  config=arithmetic.py
  train --config.sft.updates=300 --config.rl.iterations=3 --config.evaluation.problems=125
  step parity 60 "$python" tests/helpers/llada_parity.py tests/model/fixtures/llada_tiny
  # Tests of meshes need eight devices; they run on emulated ones, on the CPU (launch/test.sh). Products in full float32.
  if "$python" -c 'import pytest' 2>/dev/null; then
    JAX_DEFAULT_MATMUL_PRECISION=highest step tests 110 "$python" -m pytest -m "not slow" \
      tests/rl tests/diffusion tests/model/test_lora.py tests/model/test_attention.py tests/test_api.py \
      -k "gpu or cudnn or not (mesh or compiled_once or lie_where or tied_head or log_softmax or share or splash)"
  fi
else
  toy=(--width 16 --depth 1 --heads 2 --repetitions 1 --prompt-length 5)
  step llada_8b 120 "$python" benchmarks/llada_8b.py --small --prompt-length 16 --completion-length 16 --steps 2 \
    --repetitions 1 --rows 8 --group-size 2 --output "$out/llada_8b-cpu.json"
  step predicted 30 "$python" benchmarks/predicted.py "$out/llada_8b-cpu.json"
  step update 45 "$python" benchmarks/update.py "${toy[@]}" --completion-length 6 --prompts 2 --group-size 3 --chunk 4 \
    --output "$out/update-cpu.json"
  step rollout 45 "$python" benchmarks/rollout.py "${toy[@]}" --completion-length 8 --block 4 --steps 4 \
    --output "$out/rollout-cpu.json"
  config=tests/end_to_end/tiny.py
  train --config.sft.updates=20 --config.rl.iterations=1
  step parity 120 "$python" tests/helpers/llada_parity.py tests/model/fixtures/llada_tiny
fi
exit $failed
