#!/usr/bin/env bash
# The one check before a commit: formatting, the order of the layers, every test.
#
#   ./scripts/check.sh [--quick]     --quick leaves the sanitizers out
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments "$@"

cd "$ROOT"
if command -v clang-format >/dev/null; then
  git ls-files -z --cached --others --exclude-standard -- '*.cpp' '*.h' '*.cu' |
    xargs -0 clang-format --dry-run --Werror || fail "some files are not formatted" "Mend them: clang-format -i FILE …"
else
  say "clang-format is not installed: formatting is not checked"
fi
setup test
"$PYTHON" scripts/check_layers.py
exec "$ROOT/scripts/test.sh" "$@"
