#!/usr/bin/env bash
# Trains on this machine: bash launch/local.sh [--dry-run] [flags of igpo_jax.train]
# Without --config, a small diffusion model learns sums. The same command goes on with an interrupted run.
# Environment: PYTHON, the interpreter that .venv is made with; IGPO_EXTRAS, extras to install (test,report); IGPO_DRY_RUN.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/options.sh
if [ "${1:-}" = --dry-run ]; then
  IGPO_DRY_RUN=1
  shift
fi
case " $*" in *" --config="* | *" --config "*) ;; *) set -- --config=arithmetic.py "$@" ;; esac
[ "${IGPO_DRY_RUN:-0}" != 0 ] || . launch/venv.sh
run exec .venv/bin/python -m igpo_jax.train "$@"
