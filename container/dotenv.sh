# For the scripts beside it and the Makefile: reads settings that the environment lacks from .env, as docker compose does. The
# last line of a name counts. Variables and escapes inside a value work in Compose only: here they are refused.
# shellcheck shell=bash

dotenv() { # dotenv FILE
  local line key value names=()
  [ -f "$1" ] || return 0
  while IFS= read -r line || [ -n "$line" ]; do
    line=${line%$'\r'}
    [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z_0-9]*)[[:space:]]*=[[:space:]]*(.*)$ ]] || continue
    key=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
    case $value in
    *[\$\\]*) die "$1: $key" 'has a $ or a \ in it, which make and container/run.sh do not read as Compose does' 'write it out' ;;
    \"*\"*) value=${value#\"} value=${value%%\"*} ;;
    \'*\'*) value=${value#\'} value=${value%%\'*} ;;
    [\"\']*) die "$1: $key" 'has a quote that its line does not close, which make and container/run.sh do not read as Compose does' 'write it on one line' ;;
    *) value=${value%%[[:space:]]#*} value=${value%"${value##*[![:space:]]}"} ;;
    esac
    # The environment wins over the file; a later line wins over an earlier one.
    case " ${names[*]-} " in *" $key "*) ;; *) [ -z "${!key:-}" ] || continue ;; esac
    names+=("$key")
    export "$key=$value"
  done <"$1"
}

die() { # die WHERE FACT REMEDY
  printf 'error: %s: %s; %s\n' "$1" "$2" "$3" >&2
  exit 2
}
