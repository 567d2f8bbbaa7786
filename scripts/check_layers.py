#!/usr/bin/env python3
"""Checks which room of the tree may include which, one way only:

    kernels/gpu → kernels/<op> → csrc/ops → csrc/model → csrc/rl → csrc/train → csrc/command_line.* → csrc/python, csrc/main.cpp

    scripts/check_layers.py [ROOT]      prints one line a finding, file:line first; exit code 1 where there are any

Beside that order: csrc/data is a leaf that rl and train use; csrc/methods stands on csrc/ops, and rl and train apply it; kernels/ knows no torch, and nothing else knows .cuh or a
launch; constexpr functions of kernels/*.h are for the device too; yaml-cpp, PCRE2, zlib and c10d have their users; project files are included by their path from the root.
"""

import re
import sys
from pathlib import Path

# Room → rooms and files it may include beside itself. The longest prefix that fits a path is its room.
ROOMS = {
    "kernels/gpu/": ["kernels/simt/"],  # the portability layer is where the host machine takes the GPU's place
    "kernels/simt/": ["kernels/gpu/"],
    "kernels/": ["kernels/gpu/", "kernels/simt/"],
    "csrc/field.h": [],
    "csrc/one_of.h": ["csrc/field.h"],
    "csrc/durable_file.": [],
    "csrc/message.": [],
    "csrc/data/": ["csrc/field.h", "csrc/one_of.h", "csrc/durable_file.", "csrc/message.", "kernels/gpu/philox.h"],
    "csrc/ops/": ["kernels/"],
    "csrc/methods/": ["csrc/ops/", "csrc/field.h", "csrc/one_of.h", "csrc/message.", "kernels/gpu/philox.h"],
    "csrc/model/": ["csrc/ops/", "csrc/field.h", "csrc/data/random.h"],  # initial weights are drawn from its streams
    "csrc/rl/": ["csrc/methods/", "csrc/one_of.h", "csrc/model/", "csrc/ops/", "csrc/data/", "csrc/field.h", "csrc/message."],
    "csrc/train/": ["csrc/methods/", "csrc/one_of.h", "csrc/rl/", "csrc/model/", "csrc/ops/", "csrc/data/", "csrc/field.h", "csrc/durable_file.", "csrc/message."],
    "csrc/python/": ["csrc/command_line.", "csrc/train/", "csrc/rl/", "csrc/model/", "csrc/ops/", "csrc/data/", "csrc/field.h", "csrc/message."],
    "csrc/command_line.": ["csrc/train/", "csrc/message."],
    "csrc/main.cpp": ["csrc/command_line.", "csrc/train/", "csrc/message."],
    "tests/kernels/": ["kernels/"],
    "tests/csrc/": ["csrc/", "kernels/"],
    "tests/fuzz/": ["csrc/"],
    "scripts/": ["csrc/", "kernels/"],
}
KERNELS = ("kernels/", "tests/kernels/")  # where CUDA may be written
# What is included → the only places that may.
RESERVED = [
    (re.compile(r"(torch|ATen|c10|caffe2)/"), ("csrc/", "tests/csrc/", "scripts/"), "kernels/ and its tests know no torch"),
    (re.compile(r"pcre2"), ("csrc/rl/pattern.cpp", "csrc/data/split_pattern.cpp", "csrc/data/pcre2_held.h"),
     "PCRE2 is used in csrc/rl/pattern.cpp and csrc/data/split_pattern.cpp alone"),
    (re.compile(r"zlib\.h"), ("csrc/data/jsonl_files.cpp", "tests/csrc/jsonl_files_test.cpp"), "zlib is used in csrc/data/jsonl_files.cpp alone"),
    (re.compile(r"yaml-cpp/"), ("csrc/train/config.cpp", "csrc/train/config_document."), "yaml-cpp is read in csrc/train/config_document.* and config.cpp alone"),
    (re.compile(r"torch/csrc/distributed/|gloo/"), ("csrc/train/distributed.cpp",),
     "c10d and Gloo are used in csrc/train/distributed.cpp alone"),
    (re.compile(r".*\.cuh$"), KERNELS, ".cuh files stay in kernels/"),
]
GENERATED = {"build_summary.h"}  # made by csrc/CMakeLists.txt in the build folder
SOURCES = {".h", ".hpp", ".cuh", ".cpp", ".cc", ".cu"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
PROJECT = re.compile(r"(kernels|csrc|tests)/")
# Strings and comments go before launches are looked for; a block comment keeps its line breaks.
NOT_CODE = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)


# A constexpr function of a header that kernels include, which nvcc lets a kernel call only where it is for the device too; a machine
# without nvcc would not see it.
FOR_HOST = re.compile(r"^(?!.*ISENTROPE_HOST_DEVICE)[ \t]*(?:inline |static )*constexpr [\w:<>*& ]*?\b[a-z]\w*\(", re.MULTILINE)


def room_of(path):
    return max((room for room in ROOMS if path.startswith(room)), key=len, default=None)


def check_include(root, path, room, quote, name):
    """Yields what is wrong with one include of the file at path (both relative to root)."""
    for pattern, places, why in RESERVED:
        if pattern.match(name) and not path.startswith(places):
            yield f"{why}: {name}"
    if ".." in name.split("/"):
        yield f"included by a path that goes up, wanted the path from the root: {name}"
    elif quote == '"' and name not in GENERATED and not (root / name).exists():
        yield f"no such file, seen from the root: {name}"
    elif PROJECT.match(name):
        target = room_of(name)
        if target != room and not any(name.startswith(allowed) for allowed in ROOMS[room]):
            yield f"{room} may not include {name}; it may include {', '.join(ROOMS[room]) or 'no other room'}"


def check_file(root, path):
    """Yields (line, finding) for the source file at path, relative to root."""
    room = room_of(path)
    if room is None:
        yield 1, f"belongs to no room of scripts/check_layers.py; there are {', '.join(ROOMS)}"
        return
    text = (root / path).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        found = INCLUDE.match(line)
        if found:
            for finding in check_include(root, path, room, *found.groups()):
                yield number, finding
    if re.fullmatch(r"kernels/\w+\.h", path):
        for found in FOR_HOST.finditer(text):
            yield text.count("\n", 0, found.start()) + 1, "a constexpr function that kernels may call is ISENTROPE_HOST_DEVICE"
    if not path.startswith(KERNELS):
        if path.endswith((".cu", ".cuh")):
            yield 1, f"CUDA sources stay in {' and '.join(KERNELS)}"
        code = NOT_CODE.sub(lambda m: "\n" * m.group().count("\n"), text)
        for number, line in enumerate(code.splitlines(), 1):
            if "<<<" in line:
                yield number, f"launches (<<< >>>) stay in {' and '.join(KERNELS)}"


def check_tree(root):
    """Returns ["file:line: finding", …] for every source under the rooms of root, and how many files were read."""
    paths = sorted(p.relative_to(root).as_posix() for top in ("kernels", "csrc", "tests", "scripts")
                   for p in (root / top).rglob("*") if p.suffix in SOURCES)
    return [f"{path}:{line}: {finding}" for path in paths for line, finding in check_file(root, path)], len(paths)


if __name__ == "__main__":
    tree = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    findings, files = check_tree(tree)
    if not files:
        sys.exit(f"no sources under {tree}")
    print("\n".join(findings) if findings else f"layers: {files} files in order")
    sys.exit(1 if findings else 0)
