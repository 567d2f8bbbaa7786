#!/usr/bin/env bash
# The one check before a commit: formatting and the order of the layers at once, then every test, which has both again.
#
#   ./scripts/check.sh            what continuous integration runs
#   ./scripts/check.sh --quick    without the sanitizers
#   ./scripts/check.sh --full     and what takes hours or a package index: the attacks of scripts/reliability.py, ranks killed at random moments, an installation in isolation, a minute of
#                                 libFuzzer for each reader of files, findings/, other versions and users of what is written, TRL and verl, the sweep over the models of transformers and its lowest version, the mutants of the kernels, the CUDA build
#
# Of --full every part runs, also after another has failed; the exit code is 0 only where all passed.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments "$@"

cd "$ROOT"
full=0
if [ "${1:-}" = --full ]; then
  full=1
  shift
fi
setup test
"$PYTHON" -m pytest -q tests/python/test_formatting.py tests/python/test_layers.py
"$ROOT/scripts/test.sh" "$@"
[ $full = 1 ] || exit 0

failed=()
# part NAME COMMAND …
part() {
  local name=$1
  shift
  say "" "== $name"
  "$@" || failed+=("$name")
}

# A minute for each reader; afterwards the tests take again what CMakeLists.txt says.
fuzz() {
  local code=0
  cmake -DISENTROPE_FUZZ_SECONDS=60 build/fuzz >/dev/null && ctest --preset fuzz || code=$?
  cmake -UISENTROPE_FUZZ_SECONDS build/fuzz >/dev/null
  return $code
}

export ISENTROPE_BUILD=$ROOT/build/release
part "ranks killed at 40 random moments" env ISENTROPE_RANK_KILLS=40 "$PYTHON" -m pytest -q tests/python/test_ranks.py -k random_moments
part "an installation in isolation" env ISENTROPE_ISOLATED_INSTALL=1 "$PYTHON" -m pytest -q tests/python/test_install.py -k isolation
part "attacks" "$PYTHON" scripts/reliability.py --full
if has_libfuzzer; then
  build fuzz test
  part "libFuzzer" fuzz
else
  say "" "== libFuzzer: there is no clang with its runtime"
fi
for script in findings/*.sh; do part "$script" "$script"; done
part "transformers sweep" "$PYTHON" scripts/transformers_sweep.py --jobs 2
part "the lowest transformers" scripts/transformers_lowest.sh
part "clients of the folders" scripts/folder_clients.sh
part "TRL and verl" scripts/integrations.sh
part "mutants of the kernels" "$PYTHON" scripts/mutate_kernels.py
# Exit code 3 of a machine without a GPU does not come with --build-only; without an nvcc there is nothing to build.
if [ -n "${CUDACXX:-}" ] || ls "$(dirname "$PYTHON")"/../lib/python*/site-packages/nvidia/*/bin/nvcc >/dev/null 2>&1; then
  part "CUDA build" scripts/gpu_check.sh --build-only
else
  say "" "== CUDA build: there is no nvcc"
fi
[ ${#failed[@]} -eq 0 ] || fail "failed: $(printf '%s; ' "${failed[@]}")"
