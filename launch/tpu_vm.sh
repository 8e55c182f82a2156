#!/usr/bin/env bash
# Trains on a Cloud TPU, one host or a pod, over ssh:
#   bash launch/tpu_vm.sh --name=NAME --zone=ZONE --type=v5litepod-16 [--project=P] [--version=IMAGE] [--spot]
#     [--setup=COMMAND] [--babysit] [--dry-run] -- --config=math.py --workdir=/shared/run [flags of igpo_jax.train]
# Makes the TPU unless it is there, copies the files that git tracks, starts the training on all hosts and follows host 0's
# log; ^C stops following, not the training. The same command follows a training that runs, and goes on with one that was stopped.
# --setup    runs on every host first, such as: sudo mount -t nfs 10.0.0.2:/share /shared, or gcsfuse (BUILD.md)
# --babysit  makes a preempted TPU anew and goes on, until the run is complete or fails
# All flags may also be variables of the environment: IGPO_NAME, IGPO_ZONE, ...
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/options.sh
options "name zone type project version spot setup babysit dry-run" "$@"
required name zone type
workdir > /dev/null
poll=${IGPO_POLL_SECONDS:-60}

case $IGPO_TYPE in
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *) image=tpu-ubuntu2204-base ;;
esac
image=${IGPO_VERSION:-$image}
where=(--zone="$IGPO_ZONE")
[ -z "${IGPO_PROJECT:-}" ] || where+=(--project="$IGPO_PROJECT")

tpu() { # verb, arguments
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$IGPO_NAME" "${where[@]}" "$@"
}

on() { # host or "all", command
  tpu ssh --worker="$1" --command="$2"
}

state() { # READY, PREEMPTED, ...; nothing if there is no such TPU
  [ "${IGPO_DRY_RUN:-0}" != 0 ] || tpu describe --format='value(state)' 2>/dev/null || true
}

make_ready() { # status 1: the TPU was there
  local now
  while true; do
    now=$(state)
    case $now in
      READY) return 1 ;;
      "")
        tpu create --accelerator-type="$IGPO_TYPE" --version="$image" ${IGPO_SPOT:+--spot} && return 0
        [ -n "${IGPO_BABYSIT:-}" ] || fail "the TPU could not be made"
        ;;
      PREEMPTED | TERMINATED | STOPPED | FAILED) tpu delete --quiet ;;
      *) echo "$IGPO_NAME is $now" ;;
    esac
    sleep "$poll"
  done
}

# shellcheck disable=SC2016  # expands on the host
alive='kill -0 "$(cat igpo_jax/run.pid 2>/dev/null)" 2>/dev/null'

start() {
  local archive command
  archive=$(mktemp -d)/igpo_jax.tar.gz
  git ls-files -z | tar --null --files-from=- -czf "$archive"
  run gcloud compute tpus tpu-vm scp "$archive" "$IGPO_NAME:" "${where[@]}" --worker=all
  command="mkdir -p igpo_jax && cd igpo_jax && tar -xzf ../igpo_jax.tar.gz"
  # What an earlier start has left on this host: the pid is that of a session, with all that it started.
  command+=" && { [ ! -f run.pid ] || kill -KILL -- -\$(cat run.pid) 2>/dev/null || true; } && rm -f run.status"
  [ -z "${IGPO_SETUP:-}" ] || command+=" && { $IGPO_SETUP; }"
  command+=" && IGPO_EXTRAS=tpu,report bash -c 'set -e; . launch/venv.sh'"
  # Beside the ssh session, which may break; its pid and, at the end, its status are in files.
  command+=" && { setsid nohup bash -c 'bash launch/on_tpu.sh \"\$@\"; echo \$? > run.status' on_tpu$(printf ' %q' "${training[@]}")"
  command+=" >> run.log 2>&1 < /dev/null & echo \$! > run.pid; }"
  on all "$command"
}

follow() { # prints the log until the training ends; then its status
  # shellcheck disable=SC2016  # expands on the host
  on 0 'tail -n 20 --pid="$(cat igpo_jax/run.pid)" -F igpo_jax/run.log' || true
  [ "${IGPO_DRY_RUN:-0}" = 0 ] || return 0
  status=$(on 0 'cat igpo_jax/run.status' 2>/dev/null || true)
}

while true; do
  make_ready && fresh=1 || fresh=
  if [ -n "$fresh" ] || ! on 0 "$alive"; then
    start || [ -n "${IGPO_BABYSIT:-}" ] || fail "the training could not be started"
  fi
  status=
  follow
  [ "${IGPO_DRY_RUN:-0}" = 0 ] || exit 0
  case $status in
    0) echo "complete"; exit 0 ;;
    42 | "") [ -n "${IGPO_BABYSIT:-}" ] || fail "stopped or out of reach; the same command goes on" ;;
    *) fail "the training has failed with status $status; the log is igpo_jax/run.log on the hosts" ;;
  esac
  sleep "$poll"
done
