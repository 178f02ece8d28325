# What the pod scripts share; sourced, not run.
# shellcheck shell=bash
#
# Sets EXTRA, the arguments meant for launch/train.py, and gives `run` and `quoted`.

DRY_RUN=false
EXTRA=()

# Words as one command line that a shell reads back unchanged.
quoted() {
  local word words=()
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      words+=("$word")
    else
      words+=("'${word//\'/\'\\\'\'}'")
    fi
  done
  echo "${words[*]}"
}

# Prints a command, and runs it unless this is a dry run.
run() {
  quoted "$@"
  if [[ "$DRY_RUN" == false ]]; then
    "$@"
  fi
}

# --dry_run and --help are ours; everything else goes to launch/train.py. The script defines `usage`.
parse() {
  local word
  for word in "$@"; do
    case "$word" in
      --dry_run) DRY_RUN=true ;;
      --help | -h)
        usage
        exit 0
        ;;
      --*=*) EXTRA+=("$word") ;;
      *)
        echo "error: $word is not understood; give --config.field=value, settings are variables (--help)" >&2
        exit 1
        ;;
    esac
  done
}

# Stops unless each of these variables is set.
need() {
  local name
  for name in "$@"; do
    if [[ -z "${!name}" ]]; then
      echo "error: $name is not set; for example $name=... $0 (--help)" >&2
      exit 1
    fi
  done
}
