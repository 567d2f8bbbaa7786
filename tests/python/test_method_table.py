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


def table():
    """(kind, place) → (scope, hosts)."""
    rows = {}
    for line in (ROOT / "docs" / "methods.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and cells[1] in PLACES:
            assert len(cells) == 6, line
            rows |= {(kind, cells[1]): (cells[3], cells[4]) for kind in re.findall(r"`(\w+)`", cells[0])}
    return rows


def constant(path, name):
    """A dict or tuple that a module assigns, without the packages that the module needs."""
    for node in ast.parse((ROOT / "python" / "isentrope" / "integrations" / path).read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no {name}")


def hosts(kind):
    """As GRPOTrainer's methods=[…], verl's estimators and isentrope_weight have it."""
    offered = integration.ADVANTAGES | integration.WEIGHTS | integration.CONTROLLERS
    found = ["trainer"]
    if kind in offered and kind not in constant("trl/methods.py", "_REFUSED"):
        found.append("TRL")
    if kind in integration.ADVANTAGES:
        found.append("verl (`own_names`)" if kind in constant("verl/advantages.py", "OF_ITS_NAME") else "verl")
    if kind in integration.WEIGHTS and kind not in constant("verl/losses.py", "_NO_WEIGHT"):
        found.append("verl")
    return ", ".join(found)


def test_hosts_are_those_of_the_integrations():
    rows = table()
    assert len(rows) > 25
    kinds = {kind for kind, _ in rows}
    assert {key: row[1] for key, row in rows.items()} == {key: hosts(key[0]) for key in rows}
    assert not set(integration.ADVANTAGES | integration.WEIGHTS | integration.CONTROLLERS) - kinds
    for kind in constant("trl/methods.py", "_REFUSED"):
        assert kind in kinds, f"TRL refuses {kind!r}, which no method is called"


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
            declared[head[2], PLACES_OF[head[1]]] = scope[1] if scope else ""
            keys[head[2], PLACES_OF[head[1]]] = re.findall(r"^  (\w+) ", block, re.MULTILINE)
    assert {key: scope for key, (scope, _) in table().items()} == declared
    # Of random it is objective.scope that says what it draws in.
    of_update = {key for key, scope in declared.items() if (key[1], scope) == ("weight", "update")} - {("random", "weight")}
    assert {key for key, names in keys.items() if "scope" in names} == of_update
