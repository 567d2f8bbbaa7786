#!/usr/bin/env bash
# Runs every test, on a machine that may have nothing yet: makes the environment, builds, tests.
#
#   ./scripts/test.sh            C++ tests (ctest), the same under the address and undefined-behaviour sanitizers, the readers
#                                of files under libFuzzer (where there is a clang), then the Python tests (pytest)
#   ./scripts/test.sh --quick    without the sanitizers
#   ./scripts/test.sh --asan     the sanitizers alone
#
# Every runner runs, also after another has failed; the exit code is 0 only where all passed and each ran something.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments "$@"

plain=1 sanitized=1
case ${1:-} in
  "") ;;
  --quick) sanitized=0 ;;
  --asan) plain=0 ;;
  *) fail "test.sh knows no \"$1\"" "It takes --quick, --asan or nothing." ;;
esac

failed=()
# run NAME COMMAND …
run() {
  local name=$1 start=$SECONDS
  shift
  say "" "== $name"
  "$@" || failed+=("$name")
  say "$(printf '== %s: %d s' "$name" $((SECONDS - start)))"
}

cd "$ROOT"
export OMP_WAIT_POLICY=passive  # as the test presets have it
setup test
if [ $sanitized = 1 ]; then
  build asan test tests
  ! has_libfuzzer || build fuzz test
fi
[ $plain = 0 ] || { build release test && install_package; }
if [ $sanitized = 1 ]; then
  run "C++ tests with sanitizers" ctest --preset asan
  if has_libfuzzer; then
    run "readers under libFuzzer" ctest --preset fuzz
  else
    say "" "== readers under libFuzzer: skipped, there is no clang with its libFuzzer (clang and libclang-rt-dev, or compiler-rt)"
  fi
fi
if [ $plain = 1 ]; then
  run "C++ tests" ctest --preset release
  # A process a core, each with whole files: most tests use one thread, and share fixtures with their file alone.
  ISENTROPE_BUILD=$ROOT/build/release run "Python tests" "$PYTHON" -m pytest -n auto --dist loadfile tests/python
fi
[ ${#failed[@]} -eq 0 ] || fail "failed: $(printf '%s; ' "${failed[@]}")"
