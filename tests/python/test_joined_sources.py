"""Sources that a build may compile as one (CMAKE_UNITY_BUILD, which joins a room's sources by tens) share no name: constants, types and functions of
their anonymous namespaces meet there. Which ones are joined shifts with every new file, so that a name that stands twice is an error of some later build."""

import collections
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Rooms whose targets are joined. Sources that are compiled once an instruction set are targets of their own.
ROOMS = ["model", "data", "rl", "train", "methods"]
ALONE = re.compile(r"(_cpu|cpu_kernels|bfloat16_kernels)\.cpp$")


def parameters(text):
    """The types of "const Tensor& x, int64_t n = 0"."""
    parts = re.split(r",(?![^<]*>)", text) if text.strip() else []
    return ", ".join(re.sub(r"\s*\b\w+$", "", part.split(" = ")[0].strip()) for part in parts)


def names(text):
    found = []
    for body in re.findall(r"^namespace \{\n(.*?)^\}  // namespace\n", text, re.S | re.M):
        for line in re.findall(r"^(?:inline )?const(?:expr|init)? [^;(]*", body, re.M):
            found += re.findall(r"\b(k[A-Z]\w*)(?=\s*(?:=|\[|\{))", line)
        found += re.findall(r"^(?:struct|class|enum class|enum) (\w+)", body, re.M)
        for values in re.findall(r"^enum (?!class)[^{]*\{(.*?)\}", re.sub(r"//.*", "", body), re.M | re.S):  # of an enum without a scope
            found += re.findall(r"(?:^|,)\s*(k[A-Z]\w*)", values)
        for name, given in re.findall(r"^[A-Za-z][\w:<>&*, ]*?[ &*](\w+)\(([^()]*(?:\([^()]*\)[^()]*)*)\)[^;{]*\{", body, re.M):
            found.append(f"{name}({parameters(given)})")
    return found


def test_it_finds_names():
    text = "namespace {\nconstexpr int kA = 1, kB = 2;\nenum Sum { kFirst, kLast = kFirst + n::kMany };\nstruct Held {\n  int x;\n};\nbool is(const std::string& file, int n = 3) {\n  return kC;\n}\n}  // namespace\nint kD = 4;\n"
    assert names(text) == ["kA", "kB", "Sum", "Held", "kFirst", "kLast", "is(const std::string&, int)"]


@pytest.mark.parametrize("room", ROOMS)
def test_sources_of_a_room_share_no_name(room):
    places, sources = collections.defaultdict(list), [path for path in sorted((ROOT / "csrc" / room).rglob("*.cpp")) if not ALONE.search(path.name)]
    assert len(sources) > 5
    for path in sources:
        for name in names(path.read_text()):
            places[name].append(path.name)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
