#!/usr/bin/env bash
# What to run first where there is a GPU. Needs no network.
#
#   ./scripts/gpu_check.sh                     builds what it can, runs it, writes build/gpu_check.json
#   ./scripts/gpu_check.sh --prebuilt FOLDER   kernel tests and benchmark from FOLDER (build/gpu_check/bin of another
#                                              machine): needs a driver and bash, no compiler, no Python
#   ./scripts/gpu_check.sh --build-only        builds, runs nothing
#   ./scripts/gpu_check.sh --configure-only    configures the kernels and their tests alone: needs an nvcc, takes seconds
#   --output FILE                              the report's place
#
# Steps: kernel tests (kernel_tests_cuda) and kernel benchmark, both linked statically but for libc; then, where an nvcc
# and a torch with CUDA are found, the ops built against that torch, the Python tests of the ops on the device, and the
# benchmarks of the ops. The report has each step as passed, failed or skipped with the reason, and the figures.
#
# Exit code: 0 all that ran passed; 1 a step failed; 2 wrong arguments; 3 there is no GPU, so nothing ran and no time is
# claimed. ISENTROPE_PYTHON, ISENTROPE_CUDA_ARCHITECTURES, CUDACXX and JOBS as for the build.
set -uo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=$ROOT/build/gpu_check
OUTPUT=$ROOT/build/gpu_check.json
PREBUILT='' BUILD_ONLY=0 CONFIGURE_ONLY=0
OPS=$(sed -n 's/^set(OPS \([^)]*\))$/\1/p' "$ROOT/csrc/CMakeLists.txt")  # the one list of ops

header() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }
usage() { printf '%s\n' "error: $1" "  What it takes:  $0 --help" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) header; exit 0 ;;
    --prebuilt) [ $# -ge 2 ] || usage "--prebuilt wants a folder"; PREBUILT=$2; shift ;;
    --output) [ $# -ge 2 ] || usage "--output wants a file"; OUTPUT=$2; shift ;;
    --build-only) BUILD_ONLY=1 ;;
    --configure-only) BUILD_ONLY=1 CONFIGURE_ONLY=1 ;;
    *) usage "gpu_check.sh knows no \"$1\"" ;;
  esac
  shift
done
LOGS=$BUILD/logs
mkdir -p "$LOGS" "$(dirname "$OUTPUT")"

say() { printf '%s\n' "$*" >&2; }
quoted() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

# step NAME COMMAND …: runs it with its output in a log, and notes how it went.
steps='' failed=0
note() { # NAME STATUS SECONDS REASON
  local reason=''
  [ -z "$4" ] || reason=", \"reason\": $(quoted "$4")"
  steps+="${steps:+,
  }{\"name\": $(quoted "$1"), \"status\": \"$2\", \"seconds\": $3$reason}"
  say "$(printf '%-44s %s%s' "$1" "$2" "${4:+: $4}")"
}
step() {
  local name=$1 start=$SECONDS code=0
  local log=$LOGS/${1//[^[:alnum:]]/-}.log
  shift
  "$@" >"$log" 2>&1 </dev/null || code=$?
  if [ $code -eq 0 ]; then
    note "$name" passed $((SECONDS - start)) ''
  else
    failed=1
    tail -n 25 "$log" | sed 's/^/  | /' >&2
    note "$name" failed $((SECONDS - start)) "exit code $code; the whole output: $log"
  fi
  return $code
}
skip() { note "$1" skipped 0 "$2"; }

# ---- what this machine has -------------------------------------------------------------------------------------------

gpu=''
if command -v nvidia-smi >/dev/null; then
  gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1) || gpu=''
elif [ -e /dev/nvidiactl ]; then
  gpu="an NVIDIA GPU (nvidia-smi is missing)"
fi

PYTHON=${ISENTROPE_PYTHON:-}
if [ -z "$PYTHON" ]; then
  for PYTHON in "${VIRTUAL_ENV:-/nowhere}/bin/python" "$ROOT/.venv/bin/python" "$(command -v python3 || true)" ''; do
    [ -x "$PYTHON" ] && break
  done
fi
[ -z "$PYTHON" ] || PATH=$(dirname "$PYTHON"):$PATH
torch='' no_torch='there is no Python'
if [ -n "$PYTHON" ]; then
  torch=$("$PYTHON" -c 'import torch; print(torch.__version__ if torch.version.cuda else "")' 2>/dev/null) || torch=''
  no_torch="$PYTHON has no torch with CUDA"
fi

configure() { # FOLDER OPTION …
  local folder=$1 generator=()
  shift
  ! command -v ninja >/dev/null || generator=(-G Ninja)
  cmake -S "$ROOT" -B "$folder" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DISENTROPE_CUDA=on -DISENTROPE_TRAINER=OFF \
    ${PYTHON:+"-DPython_EXECUTABLE=$PYTHON"} \
    ${ISENTROPE_CUDA_ARCHITECTURES:+"-DISENTROPE_CUDA_ARCHITECTURES=$ISENTROPE_CUDA_ARCHITECTURES"} "$@"
}
build() { cmake --build "$1" --parallel "${JOBS:-$(getconf _NPROCESSORS_ONLN)}" --target "${@:2}"; }

# ---- kernels: build, or take as they are ------------------------------------------------------------------------------

idle=0  # without a GPU nothing is built either, unless that was asked for
if [ -z "$gpu" ] && [ $BUILD_ONLY = 0 ]; then idle=1; fi
programs=$BUILD/kernels/bin
if [ $idle = 1 ]; then
  skip "build" "there is no GPU (--build-only builds all the same)"
elif [ -n "$PREBUILT" ]; then
  programs=$(cd "$PREBUILT" 2>/dev/null && pwd) || { say "error: no folder $PREBUILT"; exit 2; }
elif command -v cmake >/dev/null; then
  step "configure the kernels" configure "$BUILD/kernels" -DISENTROPE_OPS=OFF && [ $CONFIGURE_ONLY = 0 ] &&
    step "build the kernel tests" build "$BUILD/kernels" kernel_tests_cuda kernel_benchmark kernel_resources
else
  skip "build the kernel tests" "there is no cmake; --prebuilt FOLDER takes programs built elsewhere"
fi

# ---- ops: build --------------------------------------------------------------------------------------------------------

ops=0
if [ $idle = 1 ]; then
  :
elif [ -n "$PREBUILT" ]; then
  skip "build the ops" "--prebuilt"
elif [ $CONFIGURE_ONLY = 1 ]; then
  skip "build the ops" "--configure-only"
elif [ -z "$torch" ]; then
  skip "build the ops" "$no_torch"
elif ! command -v cmake >/dev/null; then
  skip "build the ops" "there is no cmake"
elif step "configure the ops" configure "$BUILD/ops" -DISENTROPE_OPS=ON -DISENTROPE_TESTS=OFF; then
  step "build the ops" build "$BUILD/ops" isentrope_ops && ops=1
fi

# ---- run ---------------------------------------------------------------------------------------------------------------

results=''
result() { # NAME FILE: puts FILE, which is JSON, into the report
  [ ! -s "$2" ] || results+=",
 $(quoted "$1"): $(cat "$2")"
}
python_tests() {
  local files=() op
  for op in $OPS; do files+=("$ROOT/tests/python/test_$op.py"); done
  cd "$ROOT" && PYTHONPATH=$ROOT/python ISENTROPE_LIBRARY=$BUILD/ops "$PYTHON" -m pytest -q -k cuda "${files[@]}"
}
op_benchmark() {
  cd "$ROOT" && PYTHONPATH=$ROOT/python ISENTROPE_LIBRARY=$BUILD/ops "$PYTHON" scripts/bench "$1" --device cuda \
    --json "$BUILD/$1.json"
}
run_all() {
  local op
  rm -f "$BUILD"/*.json
  if [ -x "$programs/kernel_tests_cuda" ]; then
    step "kernel tests" "$programs/kernel_tests_cuda" "--gtest_output=json:$BUILD/kernel_tests.json"
  else
    skip "kernel tests" "no $programs/kernel_tests_cuda"
  fi
  if [ -x "$programs/kernel_benchmark" ]; then
    step "kernel benchmark" "$programs/kernel_benchmark" "$BUILD/kernel_benchmark.json"
  else
    skip "kernel benchmark" "no $programs/kernel_benchmark"
  fi
  result kernel_tests "$BUILD/kernel_tests.json"
  result kernel_benchmark "$BUILD/kernel_benchmark.json"
  if [ $ops = 0 ]; then
    skip "Python tests on the device" "the ops are not built"
    skip "benchmarks of the ops" "the ops are not built"
    return
  fi
  step "Python tests on the device" python_tests
  for op in $OPS; do
    if [ -f "$ROOT/scripts/benchmarks/$op.py" ]; then
      step "benchmark of $op" op_benchmark "$op"
      result "benchmark_$op" "$BUILD/$op.json"
    else
      skip "benchmark of $op" "no scripts/benchmarks/$op.py"
    fi
  done
}

code=0
if [ $BUILD_ONLY = 1 ]; then
  outcome=$([ $CONFIGURE_ONLY = 1 ] && echo "configured only: nothing was built" || echo "built only: nothing ran")
elif [ $idle = 1 ]; then
  outcome="no GPU on this machine: nothing ran, no time was taken"
  code=3
else
  run_all
  outcome=run
fi
if [ $failed = 1 ]; then code=1; fi
result kernel_resources "$BUILD/kernels/kernel_resources.json"
{
  printf '{"gpu": %s,\n "torch": %s,\n "commit": %s,\n "outcome": %s,\n "passed": %s,\n "steps": [\n  %s\n ]%s\n}\n' \
    "$([ -n "$gpu" ] && quoted "$gpu" || echo null)" "$([ -n "$torch" ] && quoted "$torch" || echo null)" \
    "$(quoted "$(git -C "$ROOT" rev-parse HEAD 2>/dev/null || echo unknown)")" "$(quoted "$outcome")" \
    "$([ "$outcome" != run ] && echo null || { [ $failed = 0 ] && echo true || echo false; })" "$steps" "$results"
} >"$OUTPUT"
[ "$outcome" = run ] || say "$outcome"
say "report: $OUTPUT"
exit $code
