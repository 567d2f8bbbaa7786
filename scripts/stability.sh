#!/usr/bin/env bash
# Shows where attention collapses and what keeps it: trains small models at rising learning rates and prints tables of their
# losses, entropies and verdicts. What stands in docs/stability.md.
#
#   ./scripts/stability.sh              the decisive part: a quarter of an hour on two cores
#   ./scripts/stability.sh --full       all of it: two hours
#   ./scripts/stability.sh --time       what each method costs
#   --seeds N  --parallel N  --out FOLDER  --write FILE     as scripts/stability.py --help has them
#
# Stopped, it goes on where it was when the same command is given again.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments "$@"

setup run
build release run python_package
cd "$ROOT"
exec "$PYTHON" "$ROOT/scripts/stability.py" --program "$ROOT/build/release/bin/isentrope" "$@"
