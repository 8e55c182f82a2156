# shellcheck shell=bash
# Sourced by the other scripts: flags of launchers, --help, --dry-run and errors.

# options NAMES "$@": --name=value sets IGPO_NAME (dashes become underscores), --name alone sets it to 1; without the flag the
# variable may come from the environment. Flags after -- are passed to igpo_jax.train and become the array `training`.
options() {
  local known=" $1 " argument name value
  shift
  training=()
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case $argument in
      --) only_flags "$@"; training=("$@"); return ;;
      --help | -h) help ;;
      --*) ;;
      *) fail "$argument is no flag; flags of igpo_jax.train come after --" ;;
    esac
    name=${argument#--}
    name=${name%%=*}
    case $known in *" $name "*) ;; *) fail "there is no flag --$name; there are:$known(flags of igpo_jax.train come after --)" ;; esac
    value=1
    case $argument in *=*) value=${argument#*=} ;; esac
    printf -v "$(variable "$name")" '%s' "$value"
  done
}

help() { # prints the comment at the top of the script
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
  exit 0
}

only_flags() { # words for igpo_jax.train: each is a flag, or the value of a flag that has no "="
  local word before=
  for word; do
    case $word in
      -*) ;;
      *) case $before in "" | *=* | [!-]*) fail "$word is no flag; a key is changed with --config.key=value" ;; esac ;;
    esac
    before=$word
  done
}

variable() { # dry-run -> IGPO_DRY_RUN
  local name=${1//-/_}
  echo "IGPO_${name^^}"
}

on() { # name of a flag
  local variable
  variable=$(variable "$1")
  [ "${!variable:-0}" != 0 ]
}

required() { # names of flags
  local name variable
  for name; do
    variable=$(variable "$name")
    [ -n "${!variable:-}" ] || fail "--$name (or $variable in the environment) is needed; see --help"
  done
}

# The folder of the run among the flags of igpo_jax.train; every host sees the same one.
workdir() {
  local i
  for ((i = 0; i < ${#training[@]}; i++)); do
    case ${training[i]} in
      --workdir=*) echo "${training[i]#*=}"; return ;;
      --workdir) echo "${training[i + 1]:-}"; return ;;
    esac
  done
  fail "the flags after -- need a --workdir that all hosts share, such as gs://BUCKET/RUN"
}

is_complete() { # Python with igpo_jax, folder of a run, which may be in a bucket
  local found='import sys; from igpo_jax.runtime.buckets import path_of; sys.exit(not path_of(sys.argv[1]).is_file())'
  case $2 in
    gs://*) "$1" -c "$found" "$2/result.json" ;;
    *) [ -f "$2/result.json" ] ;;
  esac
}

run() { # the command, or with --dry-run only its text
  if on dry-run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

fail() {
  echo "error: $*" >&2
  exit 2
}
