"""Every command and every piece of YAML, JSON and Python that README.md and docs/*.md show: what it names exists, its options and
keys are real, links lead to files, and what takes seconds is run as it is written, in a scratch folder with the run that a
tiny configuration leaves."""

import ast
import functools
import glob
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release"))
PROGRAM = BUILD / "bin" / "isentrope"
PAGES = {path.relative_to(ROOT): path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
WRITTEN_BY_SCRIPTS = {"docs/benchmarks.md", "docs/mutants.md", "docs/transformers.md"}  # their figures are no text of ours


def blocks(language):
    """[(page:line, text)] of the fenced blocks of one language."""
    found = []
    for page, text in PAGES.items():
        for match in re.finditer(rf"^```(?:{language})[ \t]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found.append((f"{page}:{text[: match.start(1)].count(chr(10)) + 1}", match.group(1)))
    return found


def parameters(found):
    return [pytest.param(*one, id=one[0]) for one in found]


def without_code(text):
    """A page's text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def shell_commands():
    """[(page:line, [word, …])] of all shell blocks: prompts and comments dropped, continued lines joined, && split."""
    found = []
    for where, text in blocks("sh|bash|console|shell"):
        page, line = where.rsplit(":", 1)
        for number, command in enumerate(re.sub(r"\\\n", " ", text).splitlines(), int(line)):
            for part in command.removeprefix("$ ").split("&&"):
                words = shlex.split(part, comments=True)
                if words and not (text.startswith("$ ") and not command.startswith("$ ")):  # output after a prompt
                    found.append((f"{page}:{number}", words))
    return found


COMMANDS = shell_commands()
SHOWN = list({tuple(words): (where, words) for where, words in reversed(COMMANDS)}.values())  # each once
TORCHRUN = [words for _, words in SHOWN if words[0] == "torchrun"]
TOOL = [words[1:] for _, words in SHOWN if Path(words[0]).name == "isentrope"]
TOOL += [words[words.index("isentrope") + 1 :] for words in TORCHRUN]
NAMES = [f"{where}: {' '.join(words)}" for where, words in SHOWN]


def run(*command, cwd=ROOT):
    # The folder of the interpreter comes first: `python` and `isentrope` are those of this environment.
    path = os.pathsep.join([os.path.dirname(sys.executable), str(PROGRAM.parent), os.environ["PATH"]])
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PATH": path, "ISENTROPE_PYTHON": sys.executable}, stdin=subprocess.DEVNULL)


# ---- what needs no program -----------------------------------------------------------------------------------------


def test_the_two_commands_are_shown():
    readme = [words for where, words in COMMANDS if where.startswith("README.md:")]
    assert ["./scripts/train.sh", "configs/quickstart.yaml"] in readme
    assert ["./scripts/test.sh"] in readme


@pytest.mark.parametrize("words", [words for _, words in SHOWN], ids=NAMES)
def test_files_that_a_command_names_exist(words):
    for word in words:
        if re.match(r"(\./)?(scripts|configs|examples|tests|docs)/", word):
            there = list(ROOT.glob(word.removeprefix("./")))
            assert there, f"{word} does not exist"
            if word == words[0]:
                assert os.access(there[0], os.X_OK), f"{word} is not executable"


@pytest.mark.parametrize("words", [w for _, w in SHOWN if w[0].startswith("./scripts/")], ids=" ".join)
def test_scripts_say_the_options_that_are_shown(words):
    script = ROOT / words[0]
    text = script.read_text()
    if words[0].endswith("train.sh"):  # `isentrope train` takes what it is given
        text += (ROOT / "csrc" / "command_line.cpp").read_text()
    for option in (word.split("=")[0] for word in words[1:] if word.startswith("--")):
        assert re.search(rf"(?<![\w-]){option}\b", text), f"{words[0]} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_that_the_text_names_exist(page):
    for name in re.findall(r"`((?:scripts|configs|examples|kernels|csrc)/[\w./*-]+)", without_code(PAGES[page])):
        if "<" not in name:
            assert list(ROOT.glob(name)), f"{page} names {name}, which does not exist"


def anchors(path):
    """The places within a page that links can lead to, as GitHub and mkdocs name headings alike."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower())) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", without_code(PAGES[page])):
        linked = (ROOT / page.parent / target).resolve() if target else ROOT / page
        assert linked.is_file(), f"{page} links {target}, which is no file"
        assert not anchor or anchor in anchors(linked), f"{page} links {target}#{anchor}: no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if str(page) != "README.md"], ids=str)
def test_each_page_is_linked_from_another(page):
    assert any(f"{page.name})" in text or f"{page.name}#" in text for other, text in PAGES.items() if other != page)


def test_the_site_has_each_page():
    site = (ROOT / "mkdocs.yml").read_text()
    assert not [page.name for page in PAGES if str(page) != "README.md" and f": {page.name}\n" not in site]


def test_the_site_builds(tmp_path):
    pytest.importorskip("material")
    told = run(sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path)
    assert told.returncode == 0, told.stderr
    for page in ("index.html", "data/index.html", "findings/index.html", "csrc/rl/entropy_law.h/index.html"):
        assert (tmp_path / page).is_file(), f"the site has no {page}"


def keys_of_the_configuration():
    """Every name that some struct declares as a key (csrc/field.h)."""
    names = set()
    for header in (ROOT / "csrc").rglob("*.h"):
        names.update(re.findall(r'\bv\("(\w+)",', header.read_text()))
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if str(page) not in WRITTEN_BY_SCRIPTS], ids=str)
def test_keys_that_the_text_names_are_keys(page):
    keys = keys_of_the_configuration()
    sections = {"run", "metrics", "model", "tokenizer", "test", "phases", "objective", "data", "batch", "optimizer", "schedule", "rollout",
                "reward", "evaluation"}
    phases = {"sft", "grpo", "pretrain", "rl"}
    for code in re.findall(r"`([^`\n]+)`", without_code(PAGES[page])):
        path = re.match(r"(\w+(?:\.\w+)+)(?:[=: …]|$)", code)
        if not path or path[1].split(".")[0] not in sections or re.search(r"\.(jsonl|json|yaml|py|h|md|safetensors)$", path[1]):
            continue
        for part in path[1].split(".")[1:]:
            assert part in keys | phases or part.isdigit() or part.isupper(), f"{page}: `{code}`: no key {part}"


def documented_metrics():
    """Patterns of the keys in the tables of docs/metrics.md."""
    patterns = []
    for row in re.findall(r"^\| (`[^|]*) \|", PAGES[Path("docs/metrics.md")], re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", row):
            patterns.append(re.sub(r"\b[A-Z]+\b", "[^/]+", re.escape(name)))
    return patterns


def undocumented(names):
    patterns = documented_metrics()
    return sorted(name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns))


def test_every_metric_that_the_sources_name_is_documented():
    order = re.search(r"kOrder\{(.*?)\};", (ROOT / "csrc/train/metrics.cpp").read_text(), re.DOTALL)[1]
    names = set(re.findall(r'"([^"]+)"', order))
    statistics = (ROOT / "kernels/grpo_loss.h").read_text()
    names.update(re.findall(r'"([^"]+)"', re.search(r"kGrpoStatNames\[.*?\] = \{(.*?)\};", statistics, re.DOTALL)[1]))
    for source in [*(ROOT / "csrc/rl").glob("*.cpp"), *(ROOT / "csrc/train").glob("*.cpp")]:
        names.update(re.findall(r'(?:stats|values)\["([a-z_]+/?[a-z_0-9]*)"\](?! \+)', source.read_text()))
    assert len(names) > 45, "the sources name metrics in another way now"
    assert undocumented(names - {"tokens"}) == []  # the weight of means, taken out before a line is written


@pytest.mark.parametrize("where, text", parameters(blocks("json")))
def test_json_is_json(where, text):
    parsed = [json.loads(line) for line in text.splitlines()] if text.startswith('{"prompt"') else [json.loads(text)]
    assert all(isinstance(one, dict) for one in parsed)


PYTHON = blocks("python")


@pytest.mark.parametrize("where, text", parameters(PYTHON))
def test_python_names_what_is_there(where, text):
    page, line = where.rsplit(":", 1)
    tree = ast.parse(text)
    modules = {alias.asname or alias.name: alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
               for alias in node.names if alias.name.split(".")[0] == "isentrope"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            root, *parts = ast.unparse(node).split(".")
            if root in modules and all(part.isidentifier() for part in parts):
                found_in(modules[root], parts, f"{page}:{int(line) + node.lineno - 1}")


def found_in(module, parts, where):
    value = importlib.import_module(module)
    for i, part in enumerate(parts):
        if not hasattr(value, part):
            try:
                value = importlib.import_module(".".join([module, *parts[: i + 1]]))
                continue
            except ModuleNotFoundError:
                pytest.fail(f"{where}: no {module}.{'.'.join(parts)}")
        value = getattr(value, part)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_that_the_text_names_is_there(page):
    for name in re.findall(r"`(isentrope\.[\w.]+)", without_code(PAGES[page])):
        if not name.endswith((".", ".cpp", ".h")) and name not in ("isentrope.tensorboard", "isentrope.trackers"):  # programs
            host = re.match(r"isentrope\.integrations\.(\w+)", name)
            if host and importlib.util.find_spec(host[1]) is None:  # test_integrations_trl.py and test_integrations_verl.py are run with them
                continue
            found_in("isentrope", name.split(".")[1:], page)


@pytest.mark.parametrize("where, text", parameters((where, text) for where, text in PYTHON if text.startswith("import torch\n")))
def test_python_with_ops_runs_as_shown(where, text):
    exec(compile(text, where, "exec"), {})


# ---- what the program says -----------------------------------------------------------------------------------------

needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")


@functools.cache
def help_of(command):
    told = run(PROGRAM, command, "--help")
    assert told.returncode == 0, told.stderr
    return told.stdout


@needs_program
@pytest.mark.parametrize("words", TOOL, ids=" ".join)
def test_the_tool_knows_each_subcommand_and_option(words):
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", help_of(words[0])), f"`isentrope {words[0]}` has no {option}"


@needs_program
@pytest.mark.parametrize("command", ["train", "config", "plan", "sample", "evaluate", "report", "compare", "doctor", "diagnose", "rollouts", "grams", "pairs", "tasks", "stability", "probe", "cold-start", "merge", "pipeline", "budget"])
def test_options_that_the_text_names_are_the_tools(command):
    for row in re.findall(rf"^\| `isentrope {command} .*$", PAGES[Path("docs/commands.md")], re.MULTILINE):
        for option in re.findall(r"`(--[a-z-]+)", row):
            assert re.search(rf"{option}\b", help_of(command)), f"docs/commands.md: `isentrope {command}` has no {option}"


def shown_files():
    """{name: text} of the files that README.md shows and its commands use."""
    readme = {where: text for language in ("json", "yaml") for where, text in blocks(language) if where.startswith("README.md:")}
    return {"words.jsonl": next(text for text in readme.values() if text.startswith('{"prompt"')),
            "words.yaml": next(text for text in readme.values() if text.startswith("run:"))}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with the repository's configs/ and the files that README.md shows."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "configs").symlink_to(ROOT / "configs")
    for name, text in shown_files().items():
        (folder / name).write_text(text)
    for model in ("models/smollm2", "runs/options_base"):
        (folder / model).mkdir(parents=True)
        (folder / model / "config.json").write_text(json.dumps(
            {"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 8192}))  # fmt: skip
    return folder


@needs_program
@pytest.mark.parametrize("words", [w[1:] for _, w in SHOWN if w[0].endswith("train.sh")] +
                         [w[1:] for w in TOOL if w[0] == "train"], ids=" ".join)
def test_what_is_trained_is_a_configuration(words, desk):
    plain = [word for before, word in zip(["", *words], words) if not word.startswith("--") and before != "--reward"]
    told = run(PROGRAM, "config", *plain, cwd=desk)
    assert told.returncode == 0, told.stderr


@needs_program
@pytest.mark.parametrize("words", [w for w in TOOL if w[0] == "train" and "--reward" in w], ids=" ".join)
def test_a_reward_in_python_is_trained_by_as_shown(words, tmp_path):
    files = shown_files()
    lines = [json.dumps({"prompt": f"reverse {i}: ", "completion": str(i)[::-1], "answer": str(i)[::-1]}) for i in range(100, 200)]
    (tmp_path / "words.yaml").write_text(files["words.yaml"])
    (tmp_path / "words.jsonl").write_text("\n".join(lines))
    (tmp_path / "vowels.py").write_text(next(text for where, text in blocks("python") if text.startswith("def vowels")))
    short = ["phases.sft.steps=2", "phases.sft.schedule.warmup_steps=0", "phases.grpo.steps=1", "test.prompts=2", "test.sampled_prompts=2"]
    told = run(PROGRAM, *words, *short, cwd=tmp_path)
    assert told.returncode == 0 and "Checkpoint" in told.stdout, told.stderr
    assert '"reward/vowels": ' in (tmp_path / "runs" / "words" / "metrics.jsonl").read_text()


@needs_program
@pytest.mark.parametrize("where, text", parameters([one for one in blocks("yaml") if not one[1].startswith("pipeline:")]))  # test_pipelines.py reads these
def test_yaml_is_a_configuration_or_a_part_of_one(where, text, desk):
    """Whole files are given to `isentrope config` as they are; parts stand in place of those of a tiny configuration's last phase."""
    part = yaml.safe_load(text)
    whole = part
    if "phases" not in part:
        dpo = part.get("objective", {}).get("kind") == "dpo"
        tiny = "pretrain" if {"corpus", "hmm"} & set(part.get("data", {})) else "dpo" if dpo else "grpo"
        whole = yaml.safe_load((ROOT / "configs" / "tiny" / f"{tiny}.yaml").read_text())
        for key, value in part.items():
            (whole if key in ("run", "metrics", "model", "tokenizer", "test") else whole["phases"][-1])[key] = value
    file = desk / "shown.yaml"
    file.write_text(text if whole is part else yaml.safe_dump(whole, sort_keys=False))
    told = run(PROGRAM, "config", file, cwd=desk)
    assert told.returncode == 0, f"{where}: {told.stderr}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the repository's configs/ and, under the name of every run that a page mentions, a trained run."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    tiny = sorted((ROOT / "configs" / "tiny").glob("*.yaml"))[0]
    told = run(PROGRAM, "train", tiny, f"run.dir={folder}/trained", "--quiet")
    assert told.returncode == 0, told.stderr
    for name in {name for words in TOOL for word in words for name in re.findall(r"^runs/[\w/]+", word)}:
        shutil.copytree(folder / "trained", folder / name)
    return folder, tiny


@needs_program
# test_parquet.py runs rollouts, test_preference.py pairs and test_cold_start.py cold-start, of a run that saved some; test_probe.py makes and uses probes;
    # test_encoders.py compresses, test_prune.py prunes.
# models/smollm2 is what import-gguf makes of a file that a test here does not have; test_chat_template.py samples with --chat. data/diagnose/ is what
# examples/diagnose_data.py writes; test_diagnose.py measures checkpoints of a run.
@pytest.mark.parametrize("words", [w for w in TOOL if w[0] not in ("train", "import-gguf", "rollouts", "pairs", "grams", "cold-start", "compress") and not {"--watch", "models/smollm2"} & {*w} and not any(word.startswith("data/diagnose/") for word in w) and not re.search("probe|prune", " ".join(w))], ids=" ".join)
def test_the_tool_runs_as_shown(words, workplace):
    folder, tiny = workplace
    if words[0] == "tasks":
        pytest.importorskip("reasoning_gym")
    # A checkpoint is judged with the configuration that it was trained from.
    words = [str(tiny) if words[0] == "evaluate" and "--policy" not in words and word.startswith("configs/") else word for word in words]
    if words[0] in ("compare", "stability"):  # they train for minutes or hours: all but that
        words = [*(name for word in words for name in (glob.glob(word, root_dir=folder) if "*" in word else [word])), "--dry-run"]
    told = run(PROGRAM, *words, cwd=folder)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip(), "it said nothing"


@needs_program
def test_every_key_that_a_run_writes_is_documented(workplace):
    folder, _ = workplace
    names = set()
    for line in (folder / "trained" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        names.update(record.keys() - {"attention_entropy", "sigma"}, record.get("attention_entropy", {}), record.get("run", {}))
    assert undocumented(names) == []


@pytest.mark.parametrize("words", [w for _, w in SHOWN if w[0].startswith("python") and len(w) > 1 and w[1].startswith("examples/")],
                         ids=" ".join)
def test_examples_run_as_shown(words, tmp_path):
    told = run(sys.executable, *[ROOT / w if w.startswith(("examples/", "configs/")) else w for w in words[1:]], cwd=tmp_path)
    assert told.returncode == 0, told.stderr
