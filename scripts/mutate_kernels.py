#!/usr/bin/env python3
"""Removes each synchronisation of the kernels, one at a time, and tells whether a test notices.

    mutate_kernels.py [OP ...] [--line FILE:N ...] [--filter PATTERN] [--timeout SECONDS] [--markdown docs/mutants.md]

Mutated are the lines with __syncthreads, GPU_SYNC_THREADS_HERE, __syncwarp, named_barrier, copy_async_commit or
copy_async_wait in the sources of an op, kernels/<op>*.cu, and in every header of kernels/ that these include; a wait that
leaves n groups unfinished is also made to leave n + 1. A mutant is compiled for the SIMT machine with
tests/kernels/<op>*_test.cpp alone. The plain program is tried first, and where its tests pass the checked one, which sees
races. The tree is untouched: mutants are built from copies in build/mutants. A mutant of a header whose object files are those of
the tree bit for bit is none of the op's: the op does not call what was changed.

First the tests have to pass with the sources as they are. Prints a Markdown table, a row a mutant, and keeps it in
build/mutants/results.json, from which --markdown writes the page of all ops; what is kept there of the same sources and
tests is not run again. Exit code 1 where a mutant passes every test, of a header those of every op that calls it: its line
is either unnecessary, and goes, or is not tested. Each mutant takes a compilation or two of the kernels, half a minute each on a free core.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINE = ("simt", "warp", "fiber", "instructions", "checker", "symbols")
# As in tests/kernels/CMakeLists.txt.
FLAGS = ("-std=c++20", "-ffp-contract=off", "-fno-strict-aliasing", "-g1")
MODES = {"plain": ("-O1",), "checked": ("-O1", "-fsanitize=thread")}  # -O1: compiling takes longer than running
STATEMENT = re.compile(r"(?:gpu::)?(?:__syncthreads|GPU_SYNC_THREADS_HERE|__syncwarp|named_barrier|copy_async_commit|"
                       r"copy_async_wait<(\d+)>)\([^;]*\);")  # fmt: skip
INCLUDE = re.compile(r'^\s*#\s*include\s*"(kernels/[^"]+)"', re.MULTILINE)
# The machine itself, and where the synchronisations are defined for it and for nvcc.
DEFINITIONS = ("kernels/simt/", "kernels/gpu/platform.h", "kernels/gpu/async_copy.h")


def all_ops(root=ROOT):
    """The stems of the ops with kernels, as csrc/CMakeLists.txt lists them."""
    return re.search(r"^set\(OPS ([^)]*)\)", (root / "csrc/CMakeLists.txt").read_text(), re.MULTILINE)[1].split()


def files_of(folder, op, ending, ops):
    """The files of an op in a folder: those that begin with its stem, and with no longer stem of another op."""
    owner = lambda path: max((other for other in ops if path.name.startswith(other)), key=len, default=None)
    return sorted(path for path in folder.glob(f"{op}*{ending}") if owner(path) == op)


def included(root, sources):
    """The sources, and every header of kernels/ that they include, directly or not; paths relative to root."""
    found, ahead = [], [path.relative_to(root).as_posix() for path in sources]
    while ahead:
        name = ahead.pop(0)
        if name not in found and not name.startswith(DEFINITIONS):
            found.append(name)
            ahead += INCLUDE.findall((root / name).read_text())
    return found


def mutants(source):
    """[(line, what is done, mutated source)] of one file."""
    lines = source.splitlines(keepends=True)
    found = []
    for i, line in enumerate(lines):
        for match in STATEMENT.finditer(line.split("//")[0]):
            changes = [(f"no {match[0]}", ";")]
            if match[1] is not None:
                weaker = match[0].replace(f"<{match[1]}>", f"<{int(match[1]) + 1}>")
                changes.append((f"{match[0]} → {weaker}", weaker))
            for what, text in changes:
                mutated = line[: match.start()] + text + line[match.end() :]
                found.append((i + 1, what, "".join(lines[:i] + [mutated] + lines[i + 1 :])))
    return found


class Programs:
    """Test programs of one op: the machine and the tests are compiled once a mode, the kernels for every mutant."""

    def __init__(self, op, build, ops):
        self.build, self.copies = build / op, build / op / "tree"
        self.sources = files_of(ROOT / "kernels", op, ".cu", ops)
        self.tests = files_of(ROOT / "tests/kernels", op, "_test.cpp", ops)
        if not self.sources or not self.tests:
            sys.exit(f"{op}: no kernels/{op}*.cu or no tests/kernels/{op}*_test.cpp")
        self.files = included(ROOT, self.sources)
        self.compiler = [os.environ.get("CXX", "g++")]
        if shutil.which("ccache"):
            self.compiler.insert(0, "ccache")
        self.shared = {}
        shutil.rmtree(self.copies, ignore_errors=True)
        for name in self.files:
            self.write(name, (ROOT / name).read_text())

    def write(self, name, text):
        (self.copies / name).parent.mkdir(parents=True, exist_ok=True)
        (self.copies / name).write_text(text)

    def compile(self, source, target, *flags):
        target = self.build / target
        includes = (f"-I{self.copies}", f"-I{ROOT}")
        subprocess.run([*self.compiler, *FLAGS, *includes, *flags, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    def kernels(self, mode):
        return [self.compile(self.copies / path.relative_to(ROOT), f"{path.stem}_{mode}.o", *MODES[mode]) for path in self.sources]

    def shared_objects(self, mode):
        if "machine" not in self.shared:
            self.shared["machine"] = [self.compile(ROOT / f"kernels/simt/{m}.cpp", f"{m}.o", "-O2") for m in MACHINE]
        if mode not in self.shared:
            self.shared[mode] = [self.compile(path, f"{path.stem}_{mode}.o", *MODES[mode]) for path in self.tests]
        return self.shared[mode] + self.shared["machine"]

    def run(self, mode, objects, pattern, timeout):
        """"passed", or how the first test failed."""
        program = self.build / f"tests_{mode}"
        libraries = ("-lgtest_main", "-lgtest", "-lpthread")
        subprocess.run([self.compiler[-1], "-o", program, *objects, *self.shared_objects(mode), *libraries], check=True)
        command = [program, f"--gtest_filter={pattern}", "--gtest_fail_fast", "--gtest_brief=1"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"no end in {timeout:g} s"
        if done.returncode == 0:
            return "passed"
        failed = re.search(r"\[  FAILED  \] ([\w/]+\.\w+)", done.stdout)
        kind = re.search(r"\b(RACE|IN FLIGHT|UNINITIALISED|DEADLOCK|OUT OF BOUNDS)\b", done.stdout)
        return f"failed: {failed[1] if failed else f'exit code {done.returncode}'}" + (f", {kind[1]}" if kind else "")

    def digest(self, name, text):
        """Of all that decides how a mutant fares."""
        kept = hashlib.sha256(repr((MODES, name, text)).encode())
        machine = sorted((ROOT / "kernels/simt").iterdir())
        for path in [ROOT / file for file in self.files] + self.tests + machine + [ROOT / "tests/kernels/testing.h"]:
            kept.update(path.read_bytes())
        return kept.hexdigest()


def judge(programs, name, mutated, same, pattern, timeout):
    """(plain, checked) of one mutant; None where the op's object files are those of the tree."""
    programs.write(name, mutated)
    try:
        objects = programs.kernels("plain")
        if [path.read_bytes() for path in objects] == same:
            return None
        plain = programs.run("plain", objects, pattern, timeout)
        if plain != "passed":
            return plain, "not needed"
        return plain, programs.run("checked", programs.kernels("checked"), pattern, timeout)
    finally:
        programs.write(name, (ROOT / name).read_text())


def try_op(op, ops, options, keep):
    """Rows {file, line, what, plain, checked} of an op; keep(digest, result) is asked before a mutant is built, told after."""
    programs = Programs(op, options.build, ops)
    same = None
    rows = []
    print(f"\n{op}\n\n| line | mutant | plain | checked |\n| --- | --- | --- | --- |", flush=True)
    for name in programs.files:
        for line, what, mutated in mutants((ROOT / name).read_text()):
            if options.line and f"{name}:{line}" not in options.line:
                continue
            digest = programs.digest(name, mutated + options.filter)
            result = keep(digest)
            if result is None:
                if same is None:
                    objects = programs.kernels("plain")
                    same = [path.read_bytes() for path in objects]
                    if (found := programs.run("plain", objects, options.filter, options.timeout)) != "passed":
                        sys.exit(f"{op} as it is: {found}")
                result = keep(digest, judge(programs, name, mutated, same, options.filter, options.timeout) or ["not called"] * 2)
            if result[0] != "not called":
                rows.append({"file": name, "line": line, "what": what, "plain": result[0], "checked": result[1]})
                print(f"| {name}:{line} | `{what}` | {result[0]} | {result[1]} |", flush=True)
    return rows


def survivors(kept):
    """["FILE:N, what is done", …]: the mutants that no op's tests notice."""
    noticed = {}
    for rows in kept.values():
        for row in rows:
            name = f"{row['file']}:{row['line']}, {row['what']}"
            noticed[name] = noticed.get(name, False) or not row["plain"] == row["checked"] == "passed"
    return sorted(name for name, seen in noticed.items() if not seen)


def page(kept, ops):
    """docs/mutants.md of {op: rows}."""
    lines = ["# Mutants of the kernels", "",
             "Each row is the kernels without one of their synchronisations, run on the host SIMT machine: *plain* is the op's own tests, *checked*",
             "the same under the checker, which sees races, tried where the plain ones pass. A line of a header stands in the table of every op",
             "that calls it, and `passed` there says that this op alone could do without. A mutant that no op's tests notice would be a line that is",
             "unnecessary or not tested. This page is written by `scripts/mutate_kernels.py --markdown docs/mutants.md`, which runs what has changed.", ""]
    for op in ops:
        rows = kept.get(op)
        if rows is None:
            continue
        lines += [f"## {op}", ""]
        if rows:
            lines += ["| line | mutant | plain | checked |", "| --- | --- | --- | --- |"]
            lines += [f"| {row['file']}:{row['line']} | `{row['what']}` | {row['plain']} | {row['checked']} |" for row in rows]
            lines += [""]
        else:
            lines += ["No synchronisation but those of warp shuffles.", ""]
    mutants = {(row["file"], row["line"], row["what"]) for rows in kept.values() for row in rows}
    left = survivors(kept)
    lines += [f"{len(mutants)} mutants in all; not noticed: {'; '.join(left) if left else 'none'}.", ""]
    return "\n".join(lines)


def main():
    ops = all_ops()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"any of {', '.join(ops)} (all)")
    parser.add_argument("--line", nargs="*", metavar="FILE:N", help="mutate these lines alone; nothing is kept for the page")
    parser.add_argument("--filter", default="*", help="tests to run, as GoogleTest's --gtest_filter")
    parser.add_argument("--build", type=Path, default=ROOT / "build/mutants", help="where copies, programs and results go")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that the tests of a mutant may take")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page of all ops that were tried")
    options = parser.parse_args()
    if unknown := [op for op in options.ops if op not in ops]:
        sys.exit(f"there is no op {', '.join(unknown)}; there are {', '.join(ops)}")
    options.build.mkdir(parents=True, exist_ok=True)
    store = options.build / "results.json"
    kept = json.loads(store.read_text()) if store.exists() else {"rows": {}, "results": {}}

    def save():
        store.with_suffix(".tmp").write_text(json.dumps(kept, indent=1))
        store.with_suffix(".tmp").replace(store)

    def keep(digest, result=None):
        if result is not None:
            kept["results"][digest] = list(result)
            save()
        return kept["results"].get(digest)

    tried = dict(kept["rows"])
    for op in options.ops or ops:
        tried[op] = try_op(op, ops, options, keep)
        if not options.line:
            kept["rows"][op] = tried[op]
            save()
    left = survivors(tried)
    print("\nnot noticed: " + ("; ".join(left) if left else "none"))
    if options.markdown:
        options.markdown.write_text(page(kept["rows"], ops))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
