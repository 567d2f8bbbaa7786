#!/usr/bin/env bash
# Compares the methods on a task on which they can differ: builds what is missing, trains each from the same starts, prints one table.
# What is finished is not run again, so the same command goes on where it was stopped.
#
#   ./scripts/compare.sh configs/methods/*.yaml --seeds 3      the methods of these files, as configs/compare has their rows for the task
#   ./scripts/compare.sh --seeds 3                             the decisive table: the rows of configs/compare/chosen.yaml
#
#   --task NAME       configs/compare/NAME.yaml: countdown (default), path, think, mixed
#   --rows FILE       other rows than those of configs/compare/chosen.yaml and more.yaml
#   --seeds, --dir, --jobs, --level, --over, --dry-run, --only, --reward    as isentrope compare has them; --dir: runs/compare/TASK
#
# All other arguments, KEY.PATH=VALUE too, go to `isentrope compare`.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments "$@"

task=countdown dir='' rows=() methods=() words=()
while [ $# -gt 0 ]; do
  case $1 in
    --task | --dir | --rows) [ $# -gt 1 ] || fail "$1 has no value" "What it takes:  $0 --help" ;;&
    --task) task=$2 && shift ;;
    --dir) dir=$2 && shift ;;
    --rows) rows+=(--rows "$2") && shift ;;
    configs/methods/*.yaml | */configs/methods/*.yaml) methods+=("$(basename "$1" .yaml)") ;;
    *) words+=("$1") ;;
  esac
  shift
done
base=$ROOT/configs/compare/$task.yaml
[ -f "$base" ] || fail "no task \"$task\"" "There are countdown, path, think, mixed"
if [ ${#rows[@]} -eq 0 ]; then
  rows=(--rows "$ROOT/configs/compare/chosen.yaml")
  [ ${#methods[@]} -eq 0 ] || rows+=(--rows "$ROOT/configs/compare/more.yaml")
fi
if [ ${#methods[@]} -gt 0 ]; then
  words+=(--only clip)
  for name in "${methods[@]}"; do
    if grep -qE "^$name:" "$ROOT"/configs/compare/{chosen,more}.yaml; then
      words+=(--only "$name")
    else
      say "$name has no row in configs/compare and is left out"
    fi
  done
fi

setup run
build release run python_package
install_package
exec "$ROOT/build/release/bin/isentrope" compare "$base" "${rows[@]}" --law --dir "${dir:-runs/compare/$task}" "${words[@]}"
