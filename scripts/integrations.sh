#!/usr/bin/env bash
# Runs the tests of isentrope.integrations in the packages that the other tests do not have: TRL and verl. They need a package index.
#
#   ./scripts/integrations.sh [trl|verl]     default: both
#
# Each goes with what it needs, pinned, into an environment of its own, build/NAME-VERSION, before what is installed; torch and isentrope stay.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments "$@"

cd "$ROOT"
find_python
TRL=(trl==1.16.0 datasets==5.2.0)
# The least that verl's policy losses, its driver's advantages and its FSDP actor run with; all that verl asks for also brings wandb, Ray's dashboard and more.
# Its range of transformers ends below 5.11.
VERL=(verl==0.9.1 ray==2.60.0 tensordict==0.10.0 transformers==5.9.0 hydra-core==1.3.8 codetiming==1.4.0 torchdata==0.11.0 pylatexenc==2.11
  datasets==5.2.0 fastapi==0.165.0 uvicorn==0.54.0 cachetools==8.0.2)

# client PACKAGE==VERSION OTHERS …: PACKAGE itself without what it asks for.
client() {
  local name=${1%%==*} folder=$ROOT/build/${1/==/-}
  [ -f "$folder/done" ] || {
    "$PYTHON" -m venv --clear "$folder"
    "$PYTHON" -c 'import sys; print(*[path for path in sys.path if path.endswith("-packages")], sep="\n")' \
      >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/environment.pth"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$1"
    touch "$folder/done"
  }
  HF_HUB_OFFLINE=1 HF_HOME=$folder/cache "$folder/bin/python" -m pytest -rs tests/python/test_integrations_"$name"*.py
}

case ${1:-both} in
  both)
    code=0
    client "${TRL[@]}" || code=1
    client "${VERL[@]}" || code=1
    exit $code
    ;;
  trl) client "${TRL[@]}" ;;
  verl) client "${VERL[@]}" ;;
  *) fail "integrations.sh knows no \"$1\"" "It takes trl, verl or nothing." ;;
esac
