"""The table of docs/methods.md against what it speaks of: the registry's kinds and scopes, and the methods that the integrations offer."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from isentrope.integrations import methods as integration

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release")) / "bin" / "isentrope"
PLACES = {"reward": "reward[]", "advantage": "advantage[]", "weight": "weight[]", "`objective.entropy`": "objective.entropy"}
PLACES_OF = {key: place for place, key in PLACES.items()}
# Their methods are keys of one section, told apart by no key kind.
LOSSES = ("`objective.loss`", "`objective.delta`", "`objective.aggregate`")


def lines():
    """Of each row its names and cells: name, place, what it does, scope, tests, hosts, source."""
    for line in (ROOT / "docs" / "methods.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 7 and "../tests/" in cells[4]:
            yield re.findall(r"`([\w -]+)`", cells[0]), cells


def table(places=tuple(PLACES)):
    """(kind, place) → (scope, hosts)."""
    return {(kind, cells[1]): (cells[3], cells[5]) for kinds, cells in lines() if cells[1] in places for kind in kinds}


def constant(path, name):
    """A dict or tuple that a module assigns, without the packages that the module needs."""
    for node in ast.parse((ROOT / "python" / "isentrope" / "integrations" / path).read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no {name}")


def hosts(kind):
    """As GRPOTrainer's methods=[…], verl's estimators and isentrope_weight have it."""
    offered = integration.ADVANTAGES | integration.SHAPING | integration.WEIGHTS | integration.CONTROLLERS
    found = ["trainer"]
    if kind in offered and kind not in constant("trl/methods.py", "_REFUSED"):
        found.append("TRL")
    if kind in integration.ADVANTAGES | integration.WEIGHTS and kind not in constant("verl/losses.py", "_NO_WEIGHT"):
        with_shaping = kind in ("gtpo", "entropy_ratio_band")  # which look at entropies of the policy that drew
        found.append("verl (`own_names`)" if kind in constant("verl/advantages.py", "OF_ITS_NAME") else "verl (`shaping`)" if with_shaping else "verl")
    if kind in integration.SHAPING and kind not in constant("verl/shaping.py", "_REFUSED"):
        found.append("verl (`shaping`)")
    return ", ".join(found)


def test_hosts_are_those_of_the_integrations():
    rows = table()
    assert len(rows) > 25
    kinds = {kind for kind, _ in rows}
    assert {key: row[1] for key, row in rows.items()} == {key: hosts(key[0]) for key in rows}
    assert not set(integration.SHAPING | integration.ADVANTAGES | integration.WEIGHTS | integration.CONTROLLERS) - kinds
    for kind in constant("trl/methods.py", "_REFUSED"):
        assert kind in kinds, f"TRL refuses {kind!r}, which no method is called"


def keys_of(path, name):
    """The keys of a dict that a module assigns."""
    for node in ast.parse((ROOT / "python" / "isentrope" / "integrations" / path).read_text("utf-8")).body:
        if name in (getattr(getattr(node, "target", None), "id", None), getattr(getattr(node, "targets", [None])[0], "id", None)):
            return {key.value for key in node.value.keys}
    raise AssertionError(f"{path} has no {name}")


def test_every_row_has_a_source_and_tests_that_speak_of_it():
    for names, cells in lines():
        assert cells[6], f"{names} has no source"
        files = re.findall(r"\]\((\S+?)\)", cells[4])
        text = "".join((ROOT / "docs" / file).resolve().read_text("utf-8") for file in files).lower()
        plain = re.sub(r"[_ -]", "", text)
        for name in names:
            word = {"schedule": "scheduledentropy", "table": "tableofentropy", "constant": "constantentropy", "band": "entropyband"}.get(name, name)
            assert re.sub(r"[_ -]|isentrope", "", word) in plain, f"{files} do not speak of {name}"


def test_losses_and_their_hosts():
    trl, verl = keys_of("trl/config.py", "LOSSES"), keys_of("verl/losses.py", "LOSSES")
    rows = table(LOSSES)
    assert {"dppo_tv", "dppo_kl", "sapo", "geo_mean", "dro", "luspo", "vespo", "ce_gppo", "reinforce", "delta", "token-sum"} < {name for name, _ in rows}
    of_loss = {name: hosts for (name, place), (_, hosts) in rows.items() if place == "`objective.loss`"}
    assert trl - {"random_clip_cov", "random_kl_cov"} == set(of_loss)
    for name, told in of_loss.items():
        assert told == ", ".join(["trainer", *(["TRL"] if name in trl else []), *(["verl"] if f"isentrope_{name}" in verl else [])]), name


@pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")
def test_losses_are_those_of_the_trainer():
    text = subprocess.run([PROGRAM, "config", "--explain"], capture_output=True, text=True, check=True).stdout
    known = re.search(r"\bloss\b.*?one of ([\w, ]+)", text.split("phases[].objective", 1)[1], re.DOTALL)[1].split(", ")
    assert {name for name, place in table(LOSSES) if place == "`objective.loss`"} == set(known)


def test_what_is_of_an_update_is_that_in_trl_too():
    """TRL's host looks at the whole optimiser step where one of these weights stands."""
    of_update = {kind for (kind, place), (scope, _) in table().items() if place == "weight" and scope == "update"}
    assert set(constant("trl/methods.py", "_OF_TOKENS")) == of_update - set(constant("trl/methods.py", "_REFUSED"))


@pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")
def test_kinds_and_scopes_are_those_of_the_registry():
    text = subprocess.run([PROGRAM, "config", "--explain"], capture_output=True, text=True, check=True).stdout
    declared, keys = {}, {}
    for block in text.split("\n\n"):
        head = re.match(r"phases\[\]\.(\S+) \{kind: (\w+)\}: (.*)", block)
        if head and head[1] in PLACES_OF and head[2] != "op":
            scope = re.search(r" \(scope: (\w+)\)$", head[3])
            assert re.search(r"arXiv|verl|TRL", head[3]), f"{head[2]} names no source"
            declared[head[2], PLACES_OF[head[1]]] = scope[1] if scope else ""
            keys[head[2], PLACES_OF[head[1]]] = re.findall(r"^  (\w+) ", block, re.MULTILINE)
    assert {key: scope for key, (scope, _) in table().items()} == declared
    # Of random it is objective.scope that says what it draws in.
    of_update = {key for key, scope in declared.items() if (key[1], scope) == ("weight", "update")} - {("random", "weight")}
    assert {key for key, names in keys.items() if "scope" in names} == of_update
