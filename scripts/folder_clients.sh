#!/usr/bin/env bash
# Opens the folders that the trainer writes in programs that the other tests do not have: transformers 4, and the
# lm-evaluation-harness of EleutherAI. They need a package index.
#
#   ./scripts/folder_clients.sh [transformers|lm_eval]     default: both
#
# Each goes with what it needs into a folder of its own, build/NAME-VERSION, in front of what is installed; torch stays.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments "$@"

cd "$ROOT"
find_python
TRANSFORMERS=4.57.6  # the last of 4
LM_EVAL=0.4.13

# client NAME VERSION TESTS: runs the tests that the words choose.
client() {
  local folder=$ROOT/build/$1-$2
  [ -f "$folder/done" ] || {
    "$PYTHON" -m pip install --quiet --target "$folder" "$1==$2"
    touch "$folder/done"
  }
  PYTHONPATH=$folder HF_HUB_OFFLINE=1 HF_HOME=$folder/cache \
    "$PYTHON" -m pytest -rs tests/python/test_folder_clients.py -k "$3"
}

case ${1:-both} in
  both)
    code=0
    client transformers "$TRANSFORMERS" transformers_4 || code=1
    client lm_eval "$LM_EVAL" lm_eval || code=1
    exit $code
    ;;
  transformers) client transformers "$TRANSFORMERS" transformers_4 ;;
  lm_eval) client lm_eval "$LM_EVAL" lm_eval ;;
  *) fail "folder_clients.sh knows no \"$1\"" "It takes transformers, lm_eval or nothing." ;;
esac
