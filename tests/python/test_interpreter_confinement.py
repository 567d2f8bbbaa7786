"""The interpreter's process without its allow-list of nodes: what limits and the filter of system calls refuse by themselves."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = re.search(r'R"py\((.*)\)py"', (ROOT / "csrc" / "rl" / "interpreter_program.h").read_text(), re.DOTALL)[1]

# Each is harmless where it is let through.
ATTEMPTS = {
    "file": "os.open('/dev/null', os.O_RDONLY)",
    "socket": "socket.socket()",
    "fork": "os.fork() or os._exit(0)",
    "exec": "os.execv('/bin/true', ['true'])",
    "kill": "os.kill(os.getpid(), 0)",
    "list": "os.listdir('/')",
}


def confined(attempt, filtered):
    code = PROGRAM.split('if __name__ == "__main__"')[0] + f"""
import socket
calls = make_filter() if {filtered} else None
holds = confine(calls, 5, 64)
try:
    {attempt}
    told = "let through"
except OSError as error:
    told = type(error).__name__
os.write(1, (f"{{holds}} {{told}}").encode())
os._exit(0)
"""
    told = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60)
    return told.stdout.split(" ", 1) if told.stdout else ["", told.stderr]


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_filter_answers_that_it_may_not(name):
    holds, told = confined(ATTEMPTS[name], filtered=True)
    if holds == "False":
        pytest.skip("this kernel or processor has no filter of system calls that is known here")
    assert told == "PermissionError"


@pytest.mark.parametrize("name", ["file", "socket"])
def test_limits_alone_open_nothing(name):
    holds, told = confined(ATTEMPTS[name], filtered=False)
    assert (holds, told) == ("False", "OSError")  # EMFILE
