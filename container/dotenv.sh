# For the scripts beside it. Settings from .env for whatever the environment leaves open; docker compose reads the same file.
# shellcheck shell=bash

dotenv() { # dotenv FILE
  local line key value
  [ -f "$1" ] || return 0
  while IFS= read -r line || [ -n "$line" ]; do
    line=${line%$'\r'}
    [[ $line =~ ^[[:space:]]*([A-Za-z_][A-Za-z_0-9]*)=(.*)$ ]] || continue
    key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    case $value in
    \"*\"*) value=${value#\"} value=${value%%\"*} ;;
    \'*\'*) value=${value#\'} value=${value%%\'*} ;;
    *) value=${value%%[[:space:]]#*} value=${value%"${value##*[![:space:]]}"} ;;
    esac
    [ -n "${!key:-}" ] || export "$key=$value"
  done <"$1"
}

die() { # die WHERE FACT REMEDY
  printf 'error: %s: %s; %s\n' "$1" "$2" "$3" >&2
  exit 2
}
