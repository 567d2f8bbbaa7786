#!/usr/bin/env python3
"""Removes each synchronisation of a kernel source, one at a time, and tells whether a test notices.

    mutate_attention.py [--op STEM] [--line FILE:N ...] [--filter PATTERN] [--build DIR] [--timeout SECONDS]

Mutated are the lines of an op's kernels (<op>.cu, or <op>_forward.cu and <op>_backward.cu, and <op>.cuh) with __syncthreads, __syncwarp, named_barrier, copy_async_commit or
copy_async_wait; a wait that leaves n groups unfinished is also made to leave n + 1. A mutant is compiled for the SIMT
machine with tests/kernels/<op>_test.cpp alone. The plain program is tried first, and where its tests pass the checked
one, which sees races. The source itself is untouched: mutants are built from copies in DIR.

First the tests have to pass with the source as it is. Prints a Markdown table, a row a mutant. Exit code 1 where a mutant passes every test: its line is either unnecessary,
and goes, or is not tested. Each mutant takes a compilation or two of the kernels, half a minute each on a free core.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINE = ("simt", "warp", "fiber", "instructions", "checker", "symbols")
# As in tests/kernels/CMakeLists.txt.
FLAGS = ("-std=c++20", f"-I{ROOT}", "-ffp-contract=off", "-fno-strict-aliasing", "-g1")
MODES = {"plain": ("-O1",), "checked": ("-O1", "-fsanitize=thread")}  # -O1: compiling takes longer than running
STATEMENT = re.compile(r"(?:gpu::)?(?:__syncthreads|__syncwarp|named_barrier|copy_async_commit|copy_async_wait<(\d+)>)\([^;]*\);")


def sources_of(op):
    """{name: text} of the files in kernels/ that an op's kernels are."""
    paths = (ROOT / f"kernels/{op}{end}" for end in (".cuh", ".cu", "_forward.cu", "_backward.cu"))
    return {path.name: path.read_text() for path in paths if path.exists()}


def mutants(name, source, only):
    """[("file:line", what is done, mutated source)] of a kernel source; only: such places, or none for all."""
    lines = source.splitlines(keepends=True)
    found = []
    for i, line in enumerate(lines):
        match = STATEMENT.search(line.split("//")[0])
        if not match or (only and f"{name}:{i + 1}" not in only):
            continue
        changes = [(f"no {match[0]}", ";")]
        if match[1] is not None:
            weaker = match[0].replace(f"<{match[1]}>", f"<{int(match[1]) + 1}>")
            changes.append((f"{match[0]} → {weaker}", weaker))
        for what, text in changes:
            mutated = line[: match.start()] + text + line[match.end() :]
            found.append((f"{name}:{i + 1}", what, "".join(lines[:i] + [mutated] + lines[i + 1 :])))
    return found


class Programs:
    """Test programs of one op: the machine and the tests are compiled once a mode, the kernels for every mutant."""

    def __init__(self, op, build):
        self.op, self.build = op, build
        self.copies = build / "kernels"  # found before the sources themselves
        self.compiler = [os.environ.get("CXX", "g++")]
        if shutil.which("ccache"):
            self.compiler.insert(0, "ccache")
        self.objects = {}
        self.copies.mkdir(parents=True, exist_ok=True)

    def compile(self, source, target, *flags):
        target = self.build / target
        subprocess.run([*self.compiler, f"-I{self.build}", *FLAGS, *flags, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    def shared_objects(self, mode):
        if "machine" not in self.objects:
            self.objects["machine"] = [self.compile(ROOT / f"kernels/simt/{m}.cpp", f"{m}.o", "-O2") for m in MACHINE]
        if mode not in self.objects:
            test = ROOT / f"tests/kernels/{self.op}_test.cpp"
            self.objects[mode] = [self.compile(test, f"test_{mode}.o", *MODES[mode])]
        return self.objects[mode] + self.objects["machine"]

    def run(self, sources, mode, pattern, timeout):
        """"passed", or how the first test failed. sources: {name: text}."""
        for name, text in sources.items():
            (self.copies / name).write_text(text)
        kernels = [self.compile(self.copies / name, f"{name}_{mode}.o", *MODES[mode]) for name in sources if name.endswith(".cu")]
        program = self.build / f"tests_{mode}"
        libraries = ("-lgtest_main", "-lgtest", "-lpthread")
        subprocess.run([self.compiler[-1], "-o", program, *kernels, *self.shared_objects(mode), *libraries], check=True)
        command = [program, f"--gtest_filter={pattern}", "--gtest_fail_fast", "--gtest_brief=1"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"no end in {timeout} s"
        if done.returncode == 0:
            return "passed"
        failed = re.search(r"\[  FAILED  \] ([\w/]+\.\w+)", done.stdout)
        kind = re.search(r"\b(RACE|IN FLIGHT|UNINITIALISED|DEADLOCK|OUT OF BOUNDS)\b", done.stdout)
        return f"failed: {failed[1] if failed else f'exit code {done.returncode}'}" + (f", {kind[1]}" if kind else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", default="entropy_attention", help="stem of the kernel source and of its test")
    parser.add_argument("--line", nargs="*", metavar="FILE:N", help="mutate these lines alone")
    parser.add_argument("--filter", default="*", help="tests to run, as GoogleTest's --gtest_filter")
    parser.add_argument("--build", type=Path, default=ROOT / "build/mutants", help="where copies and programs go")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that the tests of a mutant may take")
    options = parser.parse_args()

    sources = sources_of(options.op)
    found = [(name, *mutant) for name, text in sources.items() for mutant in mutants(name, text, options.line)]
    if not found:
        sys.exit(f"kernels of {options.op}: no synchronisation{' in these lines' if options.line else ''}")
    programs = Programs(options.op, options.build)
    if (result := programs.run(sources, "plain", options.filter, options.timeout)) != "passed":
        sys.exit(f"kernels of {options.op} as they are: {result}")
    print("| line | mutant | plain | checked |\n| --- | --- | --- | --- |", flush=True)
    survivors = 0
    for name, line, what, text in found:
        mutated = {**sources, name: text}
        plain = programs.run(mutated, "plain", options.filter, options.timeout)
        checked = programs.run(mutated, "checked", options.filter, options.timeout) if plain == "passed" else "not needed"
        survivors += plain == checked == "passed"
        print(f"| {line} | `{what}` | {plain} | {checked} |", flush=True)
    print(f"\n{len(found)} mutants, {survivors} not noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
