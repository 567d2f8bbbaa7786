#!/usr/bin/env bash
# Runs the tests of the transformers integration with the lowest version that it supports, beside the installed one.
#
#   ./scripts/transformers_lowest.sh [VERSION]     default: LOWEST of python/isentrope/integrations/transformers.py
#
# That version and what it needs go into build/transformers-VERSION, in front of what is installed; torch stays.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments "$@"

cd "$ROOT"
find_python
version=${1:-$(sed -n 's/^LOWEST = "\(.*\)"$/\1/p' python/isentrope/integrations/transformers.py)}
folder=$ROOT/build/transformers-$version
[ -f "$folder/done" ] || {
  "$PYTHON" -m pip install --quiet --target "$folder" "transformers==$version"
  touch "$folder/done"
}
PYTHONPATH=$folder "$PYTHON" -c "import transformers; assert transformers.__version__ == '$version', transformers.__version__"
PYTHONPATH=$folder "$PYTHON" -m pytest tests/python/test_transformers.py
