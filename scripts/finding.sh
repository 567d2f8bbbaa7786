# What the scripts in findings/ share; sourced by them.
#
#   packages NAME==VERSION …   a fresh environment with these, in a temporary folder that goes when the script ends
#   expect <<'END'             what the Python that follows prints
#   run <<'PY'                 runs it there, alone; the script ends with 1 where it prints anything else
#
# The environment's own torch, with what lies beside it, is taken where it has the version that is asked for: it is the one large download.
set -euo pipefail
finding=$(basename "$0" .sh)
base=${ISENTROPE_PYTHON:-$(command -v python3)}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

packages() {
  local package
  "$base" -m venv "$scratch/venv"
  for package in "$@"; do
    [ "${package%%==*}" = torch ] || continue
    "$base" - "${package#*==}" 2>/dev/null >"$("$scratch/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth" <<'PY' || true
import importlib.metadata, sys
torch = importlib.metadata.distribution("torch")
if torch.version.split("+")[0] == sys.argv[1]:
    print(torch.locate_file(""))
PY
  done
  "$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >"$scratch/pip.log" 2>&1 ||
    { cat "$scratch/pip.log" >&2; echo "$finding: the packages cannot be installed" >&2; exit 1; }
  echo "$finding: $*"
}

expect() { cat >"$scratch/expected"; }

run() {
  cat >"$scratch/finding.py"
  (cd "$scratch" && OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 venv/bin/python -I finding.py) 2>"$scratch/errors" | tee "$scratch/seen" ||
    { cat "$scratch/errors" >&2; echo "$finding: ended with an error" >&2; exit 1; }
  if ! diff -u --label "seen before" --label "seen now" "$scratch/expected" "$scratch/seen" >&2; then
    echo "$finding: it behaves differently now" >&2
    exit 1
  fi
}
