#!/usr/bin/env bash
# Trains from a configuration, on a machine that may have nothing yet: makes the environment, builds, trains.
#
#   ./scripts/train.sh CONFIG [key.path=value …] [--resume] [--quiet]
#
# Where a script lies beside CONFIG.yaml, CONFIG.sh, it makes what the configuration starts from, and is run first.
# All arguments go to `isentrope train`. What is there already is used: the second call starts training within seconds.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments "$@"

[ $# -gt 0 ] || fail "no configuration given" "./scripts/train.sh configs/quickstart.yaml"
setup run
build release run python_package
install_package
prepare=${1%.yaml}.sh
[ "$prepare" = "$1" ] || [ ! -x "$prepare" ] || stage "prepare $(basename "$1" .yaml)" "$prepare"
exec "$ROOT/build/release/bin/isentrope" train "$@"
