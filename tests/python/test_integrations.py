"""The integrations where their hosts are not. What they do within them: test_transformers.py, test_integrations_trl.py, test_integrations_verl.py."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("host, version", [("trl", "1.16.0"), ("verl", "0.9.1")])
def test_without_its_host_an_integration_says_what_to_install(host, version):
    script = f"import sys; sys.modules[{host!r}] = None\nimport isentrope\nimport isentrope.integrations.{host}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert said.startswith(f"ImportError: isentrope.integrations.{host}: {host} cannot be imported")
    assert f"pip install {host}=={version}" in said


def test_isentrope_imports_no_host():
    script = "import sys, isentrope, isentrope.integrations\nassert not {'trl', 'verl', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
