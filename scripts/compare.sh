#!/usr/bin/env bash
# Compares configurations: trains each with several seeds, then prints one table of accuracy, pass@k and entropy.
#
#   ./scripts/compare.sh CONFIG … [--seeds 3] [--parallel 2] [--out runs/compare] [--level SHARE]
#
# What is measured and how the runs share their start: scripts/compare.py --help. A comparison that was stopped goes on
# where it was when the same command is given again.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments "$@"

[ $# -gt 0 ] || fail "no configuration given" "./scripts/compare.sh configs/tint_*.yaml"
setup run
build release run python_package
exec "$PYTHON" "$ROOT/scripts/compare.py" --program "$ROOT/build/release/bin/isentrope" "$@"
