#!/usr/bin/env bash
# One TPU host's part of a run; tpu_vm.sh and xpk.sh call it on every host: bash launch/on_tpu.sh --workdir=DIR [flags of igpo_jax.train]
# Exits with 0 if the run is complete, with 42 if a signal stopped it; the same command then resumes it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
. launch/options.sh
training=("$@")
folder=$(workdir) || exit 2

# Hosts that compiled different programs end with an error; otherwise they would wait for each other forever.
flags="--xla_tpu_use_enhanced_launch_barrier=true"
export LIBTPU_INIT_ARGS="$flags ${LIBTPU_INIT_ARGS:-}"

# On the storage that all hosts share, where the programs outlive a preempted host.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$(dirname "$folder")/compiled}"

python=.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -m igpo_jax.train "$@" &
pid=$!
signalled=
trap 'signalled=1; kill -TERM "$pid" 2>/dev/null' TERM INT
wait "$pid"
status=$?
while [ -n "$signalled" ]; do # that ended the waiting, not the training
  signalled=
  wait "$pid"
  status=$?
done
# 129, 130, 143: SIGHUP, ^C, and a second SIGTERM
if [[ "$status" =~ ^(0|129|130|143)$ ]] && ! is_complete "$python" "$folder"; then
  echo "not complete: the same command resumes the run"
  exit 42 # what xpk takes for "start again"
fi
exit "$status"
