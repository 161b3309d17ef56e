#!/usr/bin/env bash
# What tools/tpu.sh runs on each worker of a TPU slice, below the home folder:
#
#   meerkat/code      the repository        meerkat/bucket   the bucket, mounted
#   meerkat/venv      its packages          meerkat/data     the bucket's data, on the disk;
#                                           meerkat/avfit    likewise its built sources
#   meerkat/train.log what training says; a copy goes to the bucket every minute
#
#   worker.sh setup BUCKET
#   worker.sh start|loop BUCKET CONFIG WORKDIR disk|bucket [FLAGS OF meerkat_jax.train]
#   worker.sh stop BUCKET WORKDIR
#   worker.sh status
#
# `loop` is what `start` leaves in the background. Training that ends with 75 has saved because it
# was told that its machine goes: it is started again with --resume. Every other end is the last,
# and is noted in the bucket for `tools/tpu.sh watch`. A shutdown sends SIGTERM to all processes, and
# `stop` to the trainer and the loop: the one saves, the other starts nothing again. DRY_RUN=1 prints
# what `setup` would do.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tools/tpu/shell.sh
. "$here/shell.sh"
cd "$HOME"

PREEMPTED=75                            # EX_TEMPFAIL of sysexits.h, as meerkat_jax.train ends
NUMBER=${WORKER:-${HOSTNAME##*-w-}}     # TPU machines are called t1v-n-0123abcd-w-NUMBER
RETRY=${RETRY:-10}                      # seconds before training is started again
APT=(sudo apt-get -o DPkg::Lock::Timeout=600) # a new machine is busy with its own upgrades

# ---- Setup ------------------------------------------------------------------------------------

setup() {
    say "gcsfuse, the bucket, and Python 3.11 with our packages"
    install_gcsfuse
    mount_bucket "$1"
    run python3 -m venv meerkat/tools
    run meerkat/tools/bin/pip install --quiet uv
    run meerkat/tools/bin/uv venv --quiet --allow-existing --python=3.11 meerkat/venv
    run meerkat/tools/bin/uv pip install --quiet --python=meerkat/venv/bin/python \
        --constraints=meerkat/code/constraints.txt './meerkat/code[tpu]'
}

install_gcsfuse() {
    local packages=https://packages.cloud.google.com/apt key=/usr/share/keyrings/gcsfuse.asc
    local system=jammy # Ubuntu 22.04, or what the machine says
    if [[ -z ${DRY_RUN:-} ]]; then
        ! command -v gcsfuse >/dev/null || return 0
        system=$(. /etc/os-release && echo "$VERSION_CODENAME")
    fi
    run sudo curl --fail --silent --show-error --output "$key" "$packages/doc/apt-key.gpg"
    run sudo bash -c \
        "echo 'deb [signed-by=$key] $packages gcsfuse-$system main' >/etc/apt/sources.list.d/gcsfuse.list"
    run "${APT[@]}" update
    run "${APT[@]}" install --yes gcsfuse python3-venv
}

mount_bucket() {
    run mkdir -p meerkat/bucket
    if [[ -n ${DRY_RUN:-} ]] || ! mountpoint -q meerkat/bucket; then
        run gcsfuse --implicit-dirs "$1" meerkat/bucket
    fi
}

# ---- Training in the background ----------------------------------------------------------------

# The loop holds a lock for as long as it lives: no number of a dead process can be mistaken for it.
running() {
    ! flock --nonblock meerkat/loop.lock true
}

start() {
    if running; then
        say "worker $NUMBER: training already"
        return
    fi
    mount_bucket "$1"
    rm -f "meerkat/bucket/launch/$3"/worker-*.exit
    setsid --fork bash "$here/worker.sh" loop "$@" >>meerkat/train.log 2>&1 </dev/null
    say "worker $NUMBER: training in the background"
}

loop() {
    local bucket_log=meerkat/bucket/launch/$3/worker-$NUMBER.log code=0 copier
    stopping="" # heard by bash when what runs in the foreground has ended
    exec 9>meerkat/loop.lock
    flock --nonblock 9 || fail "another loop is running"
    echo $$ >meerkat/loop.pid
    trap 'stopping=1' TERM
    mkdir -p "${bucket_log%/*}"
    copy_log "$bucket_log" 9>&- >/dev/null 2>&1 &
    copier=$!
    [[ $4 == bucket ]] || fetch "$1" || code=$?
    ((code)) || train_until_done "$2" "$3" "$4" "${@:5}" || code=$?
    kill "$copier" 2>/dev/null || true
    cp meerkat/train.log "$bucket_log" || true
    # What fails while the machine goes down says nothing about the run.
    if ((code == 0)) || [[ $code != "$PREEMPTED" && -z $stopping ]]; then
        note "$3" "$code"
    fi
    return "$code"
}

# Start, and start again after each preemption; returns the last exit code.
train_until_done() {
    local config=$1 workdir=$2 from=$3 code=0 starts=0
    shift 3
    while [[ -z $stopping ]]; do
        starts=$((starts + 1))
        say "$(date -u +%FT%TZ) worker $NUMBER, start $starts"
        code=0
        (train_once "$config" "$workdir" "$from" "$@") 9>&- || code=$?
        rm -f meerkat/train.pid
        say "$(date -u +%FT%TZ) worker $NUMBER, exit code $code"
        ((code == PREEMPTED)) || break
        [[ -n $stopping ]] || sleep "$RETRY"
    done
    return "$code"
}

# Weights are read once, in order, straight from the bucket. Records of data are read at random,
# each a request of its own: the disk is faster by far, where they have room on it.
fetch() {
    local folder
    for folder in data avfit; do
        if [[ -d meerkat/bucket/$folder ]]; then
            mkdir -p "meerkat/$folder"
            gcloud storage rsync "gs://$1/$folder" "meerkat/$folder" --recursive || return
        fi
    done
}

train_once() {
    local config=$1 workdir=$2 place=$HOME/meerkat
    [[ $3 == disk ]] || place=$HOME/meerkat/bucket
    shift 3
    export PATH="$HOME/meerkat/venv/bin:$PATH" JAX_COMPILATION_CACHE_DIR=$HOME/meerkat/bucket/compiled
    # Where configs look for them: a config is the same everywhere.
    ln -sfn "$HOME/meerkat/bucket/weights" meerkat/code/weights
    ln -sfn "$place/avfit" meerkat/code/avfit
    echo "$BASHPID" >meerkat/train.pid # exec keeps the number
    cd meerkat/code
    exec python -m meerkat_jax.train --config="$config" --workdir="$HOME/meerkat/bucket/$workdir" \
        --data_dir="$place/data" --resume "$@"
}

copy_log() {
    while sleep 60; do
        cp meerkat/train.log "$1" || true
    done
}

# note WORKDIR TEXT: how the run ended on this worker.
note() {
    printf '%s\n' "$2" >"meerkat/bucket/launch/$1/worker-$NUMBER.exit"
}

# ---- Looking and stopping ----------------------------------------------------------------------

stop() {
    if ! running; then
        say "worker $NUMBER: nothing is running"
        return
    fi
    note "$2" stopped
    kill -TERM "$(cat meerkat/loop.pid)"
    # The trainer alone, not the processes that read its data: it needs them until it has saved.
    [[ ! -e meerkat/train.pid ]] || kill -TERM "$(cat meerkat/train.pid)" || true
    flock --timeout 300 meerkat/loop.lock true || fail "worker $NUMBER still runs after 5 minutes"
    say "worker $NUMBER: stopped"
}

status() {
    local what="not training"
    ! running || what=training
    say "worker $NUMBER: $what; $(tail -n 1 meerkat/train.log 2>/dev/null || echo no log)"
}

case ${1:-} in
setup | start | loop | stop | status) "$@" ;;
*) fail "worker.sh has setup, start, loop, stop and status, not $(quoted "${1:-}")" ;;
esac
