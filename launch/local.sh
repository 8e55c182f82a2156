#!/usr/bin/env bash
# Trains a small diffusion model with IGPO on this machine: bash launch/local.sh [flags of igpo_jax.train]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh
case " $*" in *" --config="* | *" --config "*) ;; *) set -- --config=arithmetic.py "$@" ;; esac
exec .venv/bin/python -m igpo_jax.train "$@"
