#!/usr/bin/env bash
# Writes a trace of a short run: bash benchmarks/profile.sh FOLDER [flags of igpo_jax.train]
# By default 20 supervised updates and 3 IGPO steps of arithmetic.py. TensorBoard's profiler and XProf open FOLDER; Perfetto
# (ui.perfetto.dev) and chrome://tracing open the perfetto_trace.json.gz that is named at the end.
set -euo pipefail
folder="${1:?usage: bash benchmarks/profile.sh FOLDER [flags of igpo_jax.train]}"
shift
case $folder in -*) echo "error: the first argument is the folder to write, not $folder" >&2; exit 2 ;; esac
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
cd "$(dirname "$0")/.."
case " $* " in *" --config="*) ;; *) set -- --config=arithmetic.py --config.sft.updates=20 --config.rl.iterations=3 "$@" ;; esac
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
PYTHONPATH="$PWD" "${PYTHON:-.venv/bin/python}" - --workdir="$work/run" "$@" <<PY
import jax
from igpo_jax import train
with jax.profiler.trace("$folder", create_perfetto_trace=True):
    try:
        train.run()
    except SystemExit as done:
        if done.code:
            raise
PY
find "$folder" -name perfetto_trace.json.gz
