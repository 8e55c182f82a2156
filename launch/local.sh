#!/usr/bin/env bash
# Trains on this machine: bash launch/local.sh [--dry-run] [flags of igpo_jax.train]
# Without --config, a small diffusion model learns sums. The same command resumes an interrupted run.
# Environment: PYTHON, the interpreter that .venv is made with; IGPO_EXTRAS, extras to install (test,report); IGPO_DRY_RUN.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/options.sh
case "${1:-}" in
  --help | -h) help ;;
  --dry-run) export IGPO_DRY_RUN=1; shift ;;
esac
case " $*" in *" --config="* | *" --config "*) ;; *) set -- --config=arithmetic.py "$@" ;; esac
on dry-run || . launch/venv.sh
set -- .venv/bin/python -m igpo_jax.train "$@"
# On a CPU, XLA's threads allocate thousands of times per update, and in glibc they contend for one lock. The loader
# prints a warning if a library is missing.
tcmalloc=libtcmalloc_minimal.so.4
if [ -z "${LD_PRELOAD:-}" ] && [ -z "$(LD_PRELOAD=$tcmalloc env true 2>&1)" ]; then
  set -- env "LD_PRELOAD=$tcmalloc" "$@"
fi
run exec "$@"
