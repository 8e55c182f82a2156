#!/usr/bin/env bash
# Trains on a Cloud TPU, one host or a pod, over ssh:
#   bash launch/tpu_vm.sh --name=NAME --zone=ZONE --type=v5litepod-16 [--project=P] [--version=IMAGE] [--spot]
#     [--setup=COMMAND] [--babysit] [--dry-run] -- --config=math.py --workdir=gs://BUCKET/run [flags of igpo_jax.train]
# Creates the TPU unless it exists, copies the files that git tracks, starts the training on all hosts and follows host 0's
# log; ^C stops following, not the training. The same command follows a running training and resumes a stopped one.
# --setup    runs on every host first. Without a bucket: sudo mount -t nfs 10.0.0.2:/share /shared, or gcsfuse (BUILD.md)
# --babysit  recreates a preempted TPU and resumes until the run is complete; gives up after three consecutive failures
# All flags may also be environment variables: IGPO_NAME, IGPO_ZONE, ...; 0 is off.
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
spot=()
! on spot || spot=(--spot)

tpu() { # verb, arguments
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$IGPO_NAME" "${where[@]}" "$@"
}

on_host() { # host or "all", command
  tpu ssh --worker="$1" --ssh-flag="-o ServerAliveInterval=30" --command="$2"
}

tpu_state() { # READY, PREEMPTED, ...; nothing if there is no such TPU
  on dry-run || tpu describe --format='value(state)' 2>/dev/null || true
}

training_state() { # running | ended STATUS | none; nothing if the host does not answer
  on_host 0 'if [ -d igpo_jax ]; then bash igpo_jax/launch/tpu_vm_host.sh state; else echo none; fi' 2>/dev/null || true
}

make_ready() {
  local now
  while true; do
    now=$(tpu_state)
    case $now in
      READY) return ;;
      "")
        if tpu create --accelerator-type="$IGPO_TYPE" --version="$image" "${spot[@]}"; then
          failures=0
          return
        fi
        failed "the TPU could not be made"
        ;;
      STOPPED) tpu start ;;
      PREEMPTED) tpu delete --quiet ;;
      TERMINATED | FAILED) # of a spot TPU that is how it ends; another may hold somebody's files
        on spot || on babysit || fail "$IGPO_NAME is $now; delete it, or say --babysit"
        tpu delete --quiet
        ;;
      *) echo "$IGPO_NAME is $now" ;;
    esac
    sleep "$poll"
  done
}

unpack="mkdir -p igpo_jax && cd igpo_jax && tar -xzf ../igpo_jax.tar.gz"

start() {
  local folder archive
  folder=$(mktemp -d)
  archive=$folder/igpo_jax.tar.gz
  {
    git ls-files -z | tar --null --files-from=- -czf "$archive" &&
      run gcloud compute tpus tpu-vm scp "$archive" "$IGPO_NAME:" "${where[@]}" --worker=all &&
      on_host all "$unpack && bash launch/tpu_vm_host.sh start$(printf ' %q' "${IGPO_SETUP:-}" "${training[@]}")"
  } || { rm -r "$folder"; return 1; }
  rm -r "$folder"
}

failures=0
failed() { # why; ends unless it is worth another try
  failures=$((failures + 1))
  on babysit || fail "$1"
  [ "$failures" -lt 3 ] || fail "$1, three times in a row"
  echo "$1; trying again"
}

while true; do
  make_ready
  state=none
  on dry-run || state=$(training_state)
  case $state in
    running) ;;
    "") failed "host 0 does not answer"; sleep "$poll"; continue ;;
    *) start || { failed "the training could not be started"; sleep "$poll"; continue; } ;;
  esac
  # shellcheck disable=SC2016  # expands on the host
  on_host 0 'tail -n 20 --pid="$(cat igpo_jax/run.pid)" -F igpo_jax/run.log' || true
  ! on dry-run || exit 0
  state=$(training_state)
  case $state in
    "ended 0") echo "complete"; exit 0 ;;
    "ended 42" | running | none | "") on babysit || fail "stopped or out of reach; the same command goes on" ;;
    *) failed "the training has $state; the log is igpo_jax/run.log on the hosts" ;; # 1 may be that a host is gone
  esac
  sleep "$poll"
done
