#!/usr/bin/env bash
# Trains on a Cloud TPU, from one chip to a pod slice. docs/pods.md is the tour.
#
#   tools/tpu.sh COMMAND [--dry-run] [--yes] [-- FLAGS OF meerkat_jax.train]
#
#   stage    copy data and weights to the bucket       logs     follow the log of a worker
#   create   ask for the TPU                           status   queue, machines, last line of logs
#   setup    wait for it; code and packages            stop     save, and stop training
#   train    start or go on, in the background         delete   give the TPU back; the bucket stays
#   watch    train, and get a new TPU after each preemption, until the run has ended
#
# --dry-run prints the commands and does nothing; it needs no gcloud. --yes deletes without asking.
# Required: PROJECT ZONE TPU_NAME ACCELERATOR_TYPE RUNTIME_VERSION BUCKET CONFIG WORKDIR.
# Optional: CAPACITY=spot|on-demand|reserved, DATA_FROM=disk|bucket; for stage WEIGHTS, SOURCES,
# DATA; for logs WORKER=0; PAUSE=60, the seconds between two looks at the queue.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/tpu/shell.sh
. tools/tpu/shell.sh
# shellcheck source=tools/tpu/settings.sh
. tools/tpu/settings.sh

WORKER_SH=meerkat/code/tools/tpu/worker.sh # as seen from the home folder of a worker
FLAGS=()                                   # what stands behind "--"
YES=""                                     # the flag alone answers questions

# ---- Google Cloud -----------------------------------------------------------------------------

# queue VERB FLAGS: a gcloud command on the queued resource.
queue() {
    local verb=$1
    shift
    run gcloud compute tpus queued-resources "$verb" "$TPU_NAME" \
        --project="$PROJECT" --zone="$ZONE" "$@"
}

# on_workers WHICH COMMAND: a line for the shell of one worker, or of all at once.
on_workers() {
    run gcloud compute tpus tpu-vm ssh "$TPU_NAME" --project="$PROJECT" --zone="$ZONE" \
        --worker="$1" --command="$2"
}

# The state of the queued resource: ACTIVE, SUSPENDED, ...; NONE if there is none.
queue_state() {
    queue describe --format='value(state.state)' 2>/dev/null || echo NONE
}

# Refuse a bucket before a TPU is paid for. Checkpoints are folders that are renamed when they are
# whole, which only a bucket with a hierarchical namespace does in one step.
check_bucket() {
    local mark=gs://$BUCKET/.tpu.sh found=True
    local describe=(gcloud storage buckets describe "gs://$BUCKET"
        --raw '--format=value(hierarchicalNamespace.enabled)')
    say "the bucket: it renames folders in one step, and can be written"
    if [[ -n ${DRY_RUN:-} ]]; then
        show "${describe[@]}"
    else
        found=$("${describe[@]}") || fail "BUCKET=$BUCKET cannot be read; docs/pods.md, Once"
    fi
    [[ $found == True ]] || fail "BUCKET=$BUCKET has no hierarchical namespace; docs/pods.md, Once"
    run gcloud storage cp tools/tpu.sh "$mark" ||
        fail "BUCKET=$BUCKET cannot be written; you need roles/storage.objectUser on it"
    run gcloud storage rm "$mark"
}

# ---- Commands ---------------------------------------------------------------------------------

stage() {
    [[ -n $WEIGHTS$SOURCES$DATA ]] || fail "nothing to stage; name a store (WEIGHTS=weights/7b),\
 the folder of built sources (SOURCES=avfit), a cache folder (DATA=DIR), or several of them"
    check_bucket
    if [[ -n $WEIGHTS ]]; then
        run gcloud storage rsync "$WEIGHTS" "gs://$BUCKET/$WEIGHTS" --recursive
    fi
    if [[ -n $SOURCES ]]; then
        run gcloud storage rsync "$SOURCES" "gs://$BUCKET/avfit" --recursive
    fi
    if [[ -n $DATA ]]; then
        # Compiled programs are this machine's own.
        run gcloud storage rsync "$DATA" "gs://$BUCKET/data" --recursive --exclude='^compiled/'
    fi
}

create() {
    check_bucket
    say "the TPU, $CAPACITY; it is paid for from the moment it is ACTIVE"
    local kind=()
    [[ $CAPACITY == on-demand ]] || kind=(--"$CAPACITY")
    queue create --node-id="$TPU_NAME" \
        --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" \
        --scopes=https://www.googleapis.com/auth/cloud-platform ${kind[@]+"${kind[@]}"}
}

wait_until_active() {
    local state
    say "wait until the TPU is ACTIVE"
    if [[ -n ${DRY_RUN:-} ]]; then
        queue describe --format='value(state.state)'
        return
    fi
    while state=$(queue_state) && [[ $state != ACTIVE ]]; do
        case $state in
        NONE) fail "there is no queued resource $TPU_NAME in $ZONE; tools/tpu.sh create" ;;
        FAILED | SUSPENDED) fail "$TPU_NAME is $state; tools/tpu.sh delete, then create" ;;
        esac
        say "$(date -u +%H:%M:%S) $state"
        sleep "$PAUSE"
    done
}

# The code is what HEAD holds: the bucket keeps it for the workers of today and of later.
send_code() {
    say "the code, as committed"
    if [[ -z ${DRY_RUN:-} ]]; then
        git cat-file -e "HEAD:./${CONFIG%%:*}" 2>/dev/null ||
            fail "CONFIG=$CONFIG is not committed; the workers get what git's HEAD holds"
        [[ -z $(git status --porcelain) ]] || say "WARNING: uncommitted changes are not sent"
    fi
    run mkdir -p runs
    run git archive --format=tar.gz --output=runs/code.tar.gz HEAD
    run gcloud storage cp runs/code.tar.gz "gs://$BUCKET/code/$TPU_NAME.tar.gz"
}

setup() {
    wait_until_active
    send_code
    say "code, bucket and packages on all workers"
    on_workers all "set -e
mkdir -p meerkat/code
gcloud storage cp gs://$BUCKET/code/$TPU_NAME.tar.gz meerkat/code.tar.gz
tar -xzf meerkat/code.tar.gz -C meerkat/code
bash $WORKER_SH setup $BUCKET"
}

train() {
    say "start training on all workers, or leave it alone where it runs"
    on_workers all "$(joined bash "$WORKER_SH" start "$BUCKET" "$CONFIG" "$WORKDIR" "$DATA_FROM" \
        ${FLAGS[@]+"${FLAGS[@]}"})"
}

logs() {
    on_workers "$WORKER" "tail -n 100 -F meerkat/train.log"
}

status() {
    queue describe --format='value(state.state)'
    run gcloud compute tpus tpu-vm describe "$TPU_NAME" --project="$PROJECT" --zone="$ZONE" \
        --format='value(state,health)'
    on_workers all "bash $WORKER_SH status"
}

stop() {
    say "save a checkpoint and stop; the TPU stays, and is paid for until it is deleted"
    on_workers all "bash $WORKER_SH stop $BUCKET $WORKDIR"
}

delete() {
    if [[ -z ${DRY_RUN:-}${YES:-} ]]; then
        local answer=""
        printf 'Delete %s in %s with its disks? The bucket stays. [y/N] ' "$TPU_NAME" "$ZONE" >&2
        read -r answer || true
        [[ $answer == [yY] ]] || fail "not deleted (--yes answers the question)"
    fi
    queue delete --force --quiet
}

# How the run has ended, as its workers noted: "0", "stopped", an exit code; nothing if it has not.
endings() {
    run gcloud storage cat "gs://$BUCKET/launch/$WORKDIR/worker-*.exit" 2>/dev/null || true
}

watch() {
    local ended state failures=0
    if [[ -n ${DRY_RUN:-} ]]; then
        watch_shown
        return
    fi
    while ended=$(endings | tr '\n' ' ') && ! over "$ended"; do
        state=$(queue_state)
        say "$(date -u +%H:%M:%S) $TPU_NAME is $state"
        if [[ -n $ended && $state == ACTIVE ]] || ! advance "$state"; then
            failures=$((failures + 1))
        else
            failures=0
        fi
        ((failures < 3)) ||
            fail "three failures in a row (${ended:-no answer}); the TPU is left as it is"
        sleep "$PAUSE"
    done
    say "the run is over ($ended); the TPU is there and paid for until tools/tpu.sh delete"
}

# over ENDINGS: done, or stopped by hand. Not yet after a failure: machines that are taken away tear
# the others down, some time before the queue says so.
over() {
    [[ $1 == *stopped* || $1 =~ ^0[0[:space:]]*$ ]]
}

# What workers noted while their slice was taken away is no end of the run.
forget() {
    run gcloud storage rm "gs://$BUCKET/launch/$WORKDIR/worker-*.exit" 2>/dev/null || true
}

# advance STATE: what brings the run on. Each step is a process of its own, which may fail.
advance() {
    case $1 in
    ACTIVE) train || { tools/tpu.sh setup && train; } ;;
    NONE) tools/tpu.sh create ;;
    SUSPENDED | FAILED) forget && tools/tpu.sh delete --yes && tools/tpu.sh create ;;
    esac
}

watch_shown() {
    say "every $PAUSE s, until a worker has noted how the run ended:"
    endings
    queue describe --format='value(state.state)'
    say "where that is SUSPENDED, as after a preemption, or FAILED:"
    forget
    delete
    say "after that, or if there is none:"
    create
    say "where it is ACTIVE:"
    train
    say "and where that finds no code on a worker, as on a new one:"
    setup
    train
}

# ---- The command line -------------------------------------------------------------------------

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

main() {
    local command=${1:-help}
    shift || true
    while (($#)); do
        case $1 in
        --dry-run) DRY_RUN=1 ;;
        --yes) YES=1 ;;
        --)
            shift
            FLAGS=("$@")
            break
            ;;
        *) fail "$(quoted "$1") is unknown; there are --dry-run, --yes, and -- before train's flags" ;;
        esac
        shift
    done
    case $command in
    stage | create | setup | train | watch | logs | status | stop | delete) ;;
    help | -h | --help) usage && exit ;;
    *) fail "command $(quoted "$command") is unknown; tools/tpu.sh --help lists them" ;;
    esac
    check_settings
    if [[ -z ${DRY_RUN:-} ]] && ! command -v gcloud >/dev/null; then
        fail "gcloud is not installed; https://cloud.google.com/sdk/docs/install, or --dry-run"
    fi
    "$command"
}

main "$@"
