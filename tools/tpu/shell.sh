# shellcheck shell=bash
# What tools/tpu.sh and tools/tpu/worker.sh share: messages, and commands that are run or only
# printed ($DRY_RUN). Reading this file does nothing. Works with the bash 3.2 of macOS too.

# say TEXT: what is done next; in a dry run a comment among the commands.
say() {
    printf '# %s\n' "$1"
}

# fail TEXT: one line on stderr, exit code 2, as the doors of meerkat_jax do.
fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# quoted WORD: the word as a shell reads it back: plain, or in single quotes (behind "--flag=").
quoted() {
    local word=$1 head="" plain='^[A-Za-z0-9_./:=@%+,-]+$' flag='^(--[a-z_-]+=)(.*)$' end="'\\''"
    if [[ $word =~ $plain ]]; then
        printf '%s' "$word"
        return
    fi
    if [[ $word =~ $flag ]]; then
        head=${BASH_REMATCH[1]} word=${BASH_REMATCH[2]}
    fi
    printf "%s'%s'" "$head" "${word//\'/$end}"
}

# joined WORDS: all words in one line, as a shell reads them back.
joined() {
    local word line=""
    for word in "$@"; do
        line+="${line:+ }$(quoted "$word")"
    done
    printf '%s' "$line"
}

# show WORDS: print a command; a long one with each flag on a line of its own.
show() {
    local line word
    line=$(joined "$@")
    if ((${#line} > 100)); then
        line=""
        for word in "$@"; do
            if [[ $word == --* ]]; then
                line+=$' \\\n    '
            else
                line+="${line:+ }"
            fi
            line+=$(quoted "$word")
        done
    fi
    printf '%s\n' "$line"
}

# run WORDS: print the command in a dry run, else run it.
run() {
    if [[ -n ${DRY_RUN:-} ]]; then
        show "$@"
    else
        "$@"
    fi
}
