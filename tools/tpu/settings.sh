# shellcheck shell=bash
# The variables of tools/tpu.sh. All are checked before anything is done, and all that is wrong is
# told at once. What passes here holds no space, quote, or other character that a shell would read.

faults=""

# fault NAME TEXT: one more thing that is wrong.
fault() {
    faults+=$'\n'"  $1 $2"
}

# must_fit NAME PATTERN EXAMPLE WHAT: the variable is set, and the pattern fits it whole.
must_fit() {
    local value=${!1:-}
    if [[ -z $value ]]; then
        fault "$1" "is not set; $4, as in: export $1=$3"
    elif ! [[ $value =~ ^($2)$ ]]; then
        fault "$1" "is $(quoted "$value"); expected $4, as in: export $1=$3"
    fi
}

check_settings() {
    local LC_ALL=C # so that a-z are 26 letters
    CAPACITY=${CAPACITY:-spot} DATA_FROM=${DATA_FROM:-disk} DATA=${DATA:-} WEIGHTS=${WEIGHTS:-}
    SOURCES=${SOURCES:-} WORKER=${WORKER:-0} PAUSE=${PAUSE:-60}
    must_fit PROJECT '[a-z][a-z0-9-]{4,28}[a-z0-9]' my-project "the id of a Google Cloud project"
    must_fit ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' us-west4-a "a zone that has this TPU"
    must_fit TPU_NAME '[a-z]([a-z0-9-]{0,60}[a-z0-9])?' meerkat-7b \
        "a name of your choice (small letters, digits, -)"
    must_fit ACCELERATOR_TYPE 'v[0-9]+[a-z]*-[0-9]+' v5litepod-16 "kind and size of the slice"
    must_fit RUNTIME_VERSION '[a-z0-9][a-z0-9.-]*' v2-alpha-tpuv5-lite "the image of its machines"
    must_fit BUCKET '[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]' my-bucket "a bucket's name without gs://"
    must_fit CONFIG '[A-Za-z0-9_][A-Za-z0-9_./-]*[.]py(:[A-Za-z0-9_=.,/-]+)?' \
        experiments/avfit.py:7b "FILE.py or FILE.py:ARG within the repository"
    must_fit WORKDIR '[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*' runs/7b \
        "a folder within the bucket"
    must_fit CAPACITY 'spot|on-demand|reserved' spot "spot, on-demand or reserved"
    must_fit DATA_FROM 'disk|bucket' disk "disk or bucket"
    must_fit WORKER '[0-9]+' 0 "the number of a worker"
    must_fit PAUSE '[0-9]+([.][0-9]+)?' 60 "seconds"
    check_files
    if [[ -n $faults ]]; then
        fail "the settings are not complete:$faults"
    fi
}

# Files that the settings name, on this machine.
check_files() {
    local file=${CONFIG:-}
    file=${file%%:*}
    if [[ -n $file && ! -f $file ]]; then
        fault CONFIG "names $(quoted "$file"), which is not in the repository"
    fi
    if [[ -n $WEIGHTS ]]; then
        must_fit WEIGHTS 'weights/[A-Za-z0-9_][A-Za-z0-9_.-]*' weights/7b \
            "a store below weights/, where configs look for it"
        if [[ ! -f $WEIGHTS/store.json ]]; then
            fault WEIGHTS "is $(quoted "$WEIGHTS"), where no store.json is; see docs/weights.md"
        fi
    fi
    if [[ -n $SOURCES ]] && ! compgen -G "$SOURCES/*/manifest.json" >/dev/null; then
        fault SOURCES "is $(quoted "$SOURCES"), below which nothing is built; see docs/data.md"
    fi
    if [[ -n $DATA && ! -d $DATA ]]; then
        fault DATA "is $(quoted "$DATA"), which is no folder; see docs/data.md"
    fi
}
