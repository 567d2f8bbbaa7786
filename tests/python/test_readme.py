"""Every command and every piece of Python that README.md shows: what it names exists, its options are real, and what
takes seconds is run as it is written, in a scratch folder with the run that a tiny configuration leaves."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release"))
PROGRAM = BUILD / "bin" / "isentrope"
README = (ROOT / "README.md").read_text()


def blocks(language):
    """[(line number, text)] of the fenced blocks of one language."""
    found = []
    for match in re.finditer(rf"^```(?:{language})[ \t]*\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        found.append((README[: match.start(1)].count("\n") + 1, match.group(1)))
    return found


def shell_commands():
    """[(line number, [word, …])] of all shell blocks: prompts and comments dropped, continued lines joined, && split."""
    found = []
    for line, text in blocks("sh|bash|console|shell"):
        for number, command in enumerate(re.sub(r"\\\n", " ", text).splitlines(), line):
            for part in command.removeprefix("$ ").split("&&"):
                words = shlex.split(part, comments=True)
                if words and not (text.startswith("$ ") and not command.startswith("$ ")):  # output after a prompt
                    found.append((number, words))
    return found


COMMANDS = shell_commands()
TOOL = [(line, words[1:]) for line, words in COMMANDS if Path(words[0]).name == "isentrope"]
NAMES = [f"line {line}: {' '.join(words)}" for line, words in COMMANDS]


def run(*command, cwd=ROOT):
    # The folder of the interpreter comes first: `python` and `isentrope` are those of this environment.
    path = os.pathsep.join([os.path.dirname(sys.executable), str(PROGRAM.parent), os.environ["PATH"]])
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PATH": path, "ISENTROPE_PYTHON": sys.executable}, stdin=subprocess.DEVNULL)


def test_the_two_commands_are_shown():
    assert ["./scripts/train.sh", "configs/quickstart.yaml"] in [words for _, words in COMMANDS]
    assert ["./scripts/test.sh"] in [words for _, words in COMMANDS]


@pytest.mark.parametrize("words", [words for _, words in COMMANDS], ids=NAMES)
def test_files_that_a_command_names_exist(words):
    for word in words:
        if re.match(r"(\./)?(scripts|configs|examples|tests|docs)/", word):
            there = list(ROOT.glob(word.removeprefix("./")))
            assert there, f"{word} does not exist"
            if word == words[0]:
                assert os.access(there[0], os.X_OK), f"{word} is not executable"


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), f"README.md links {target}, which does not exist"


@pytest.mark.parametrize("line, text", blocks("python"), ids=lambda value: f"line {value}" if isinstance(value, int) else "")
def test_python_names_what_is_there(line, text):
    import isentrope

    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "isentrope":
            assert hasattr(isentrope, node.attr), f"README.md line {line + node.lineno - 1}: no isentrope.{node.attr}"


needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")


@needs_program
@pytest.mark.parametrize("words", [w for _, w in TOOL] or [["version"]], ids=" ".join)
def test_the_tool_knows_each_subcommand_and_option(words):
    told = run(PROGRAM, words[0], "--help")
    assert told.returncode == 0, told.stderr
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", told.stdout), f"`isentrope {words[0]}` has no {option}"


@needs_program
@pytest.mark.parametrize("words", [w[1:] for _, w in COMMANDS if w[0].endswith("train.sh")] +
                         [w[1:] for _, w in TOOL if w[0] == "train"], ids=" ".join)
def test_what_is_trained_is_a_configuration(words):
    told = run(PROGRAM, "config", *(word for word in words if not word.startswith("--")))
    assert told.returncode == 0, told.stderr


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the repository's configs/ and, under the name of every run that README.md mentions, a trained run."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    tiny = sorted((ROOT / "configs" / "tiny").glob("*.yaml"))[0]
    told = run(PROGRAM, "train", tiny, f"run.dir={folder}/trained", "--quiet")
    assert told.returncode == 0, told.stderr
    for name in set(re.findall(r"runs/\w+", README)):
        shutil.copytree(folder / "trained", folder / name)
    return folder, tiny


@needs_program
@pytest.mark.parametrize("words", [w for _, w in TOOL if w[0] != "train" and "--watch" not in w], ids=" ".join)
def test_the_tool_runs_as_shown(words, workplace):
    folder, tiny = workplace
    # A checkpoint is judged with the configuration that it was trained from.
    words = [str(tiny) if words[0] == "evaluate" and word.startswith("configs/") else word for word in words]
    told = run(PROGRAM, *words, cwd=folder)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip(), "it said nothing"


@pytest.mark.parametrize("words", [w for _, w in COMMANDS if w[0].startswith("python") and len(w) > 1 and w[1].startswith("examples/")],
                         ids=" ".join)
def test_examples_run_as_shown(words, tmp_path):
    told = run(sys.executable, *[ROOT / w if w.startswith(("examples/", "configs/")) else w for w in words[1:]], cwd=tmp_path)
    assert told.returncode == 0, told.stderr
