#!/usr/bin/env bash
# Called by tpu_vm.sh on a host, in the folder that it has filled:
#   bash launch/tpu_vm_host.sh start SETUP [flags of igpo_jax.train]   # detached from the ssh session, which may break
#   bash launch/tpu_vm_host.sh state                                   # running | ended STATUS | none
set -euo pipefail
cd "$(dirname "$0")/.."
verb=$1
shift

if [ "$verb" = state ]; then
  if kill -0 "$(cat run.pid 2>/dev/null)" 2>/dev/null; then
    echo running
  elif [ -f run.status ]; then
    echo "ended $(cat run.status)"
  else
    echo none
  fi
  exit
fi

setup=$1
shift
# Left by an earlier start: the pid is the leader of a session with everything that it started.
[ ! -f run.pid ] || kill -KILL -- "-$(cat run.pid)" 2>/dev/null || true
rm -f run.pid run.status
bash -ec "$setup"
# Images of Ubuntu 22.04 have Python 3.10.
if [ -z "${PYTHON:-}" ] && ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  python3 -m pip install --quiet --user uv
  ~/.local/bin/uv python install --quiet 3.12
  PYTHON=$(~/.local/bin/uv python find 3.12)
fi
export IGPO_EXTRAS=tpu,report,gcs,data
. launch/venv.sh
# shellcheck disable=SC2016  # expands in the detached shell
setsid nohup bash -c 'bash launch/on_tpu.sh "$@"; echo $? > run.status' on_tpu "$@" >> run.log 2>&1 < /dev/null &
echo $! > run.pid
