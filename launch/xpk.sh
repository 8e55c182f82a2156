#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster that xpk manages, one slice or several:
#   bash launch/xpk.sh --cluster=CLUSTER --name=NAME --type=v5litepod-16 [--slices=2] [--zone=ZONE] [--project=P]
#     [--storage=NAME] [--image=IMAGE] [--restarts=20] [--dry-run] -- --config=math.py --workdir=gs://BUCKET/run [flags of igpo_jax.train]
# Hosts that are preempted or fail are restarted and resume the run. The same command resumes a run that ended.
# --storage  storage that `xpk storage` has attached to the cluster; without a bucket, its mount point holds the --workdir
# --image    has igpo_jax[tpu] installed and this folder as its working directory; by default the files that git tracks are copied over
#            python:3.12 and installed on every start
# All flags may also be environment variables: IGPO_CLUSTER, IGPO_NAME, ...
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/options.sh
options "cluster name type slices zone project storage image restarts dry-run" "$@"
required cluster name type
workdir > /dev/null

where=(--cluster="$IGPO_CLUSTER")
[ -z "${IGPO_ZONE:-}" ] || where+=(--zone="$IGPO_ZONE")
[ -z "${IGPO_PROJECT:-}" ] || where+=(--project="$IGPO_PROJECT")

# exec: a termination signal then reaches the training, which saves.
command="exec bash launch/on_tpu.sh$(printf ' %q' "${training[@]}")"
if [ -n "${IGPO_IMAGE:-}" ]; then
  image=(--docker-image="$IGPO_IMAGE")
else
  folder=$(mktemp -d) # what git tracks, without this machine's .venv and runs
  trap 'rm -r "$folder"' EXIT
  git ls-files -z | tar --null --files-from=- -c | tar -x -C "$folder"
  image=(--base-docker-image=python:3.12 --script-dir="$folder")
  command="pip install --quiet '.[tpu,report,gcs,data]' && $command"
fi
flags=(--tpu-type="$IGPO_TYPE" --num-slices="${IGPO_SLICES:-1}" "${image[@]}")
# 42: a signal stopped it; 1: another host is gone, or a real error, which ends the job after this many attempts.
flags+=(--max-restarts="${IGPO_RESTARTS:-20}" --restart-on-exit-codes=1)
# Leaves time to save a checkpoint.
flags+=(--termination-grace-period-seconds=300)
[ -z "${IGPO_STORAGE:-}" ] || flags+=(--storage="$IGPO_STORAGE")

# An earlier job has the same name; if it is still running it is kept, and xpk reports that it exists.
run xpk workload delete "${where[@]}" --filter-by-job="^$IGPO_NAME\$" --filter-by-status=FINISHED --force || true
run xpk workload create "${where[@]}" --workload="$IGPO_NAME" "${flags[@]}" --command="$command"
