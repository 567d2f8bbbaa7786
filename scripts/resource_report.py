#!/usr/bin/env python3
"""Resources of the CUDA kernels, from what the build left: registers, spills, shared memory, 16-byte loads.

    resource_report.py [--json FILE] [--table FILE] OBJECT...

OBJECT: an object file of kernels_cuda, compiled with `-Xptxas -v --no-compress` through cmake/keep_ptxas.sh, so that
OBJECT.ptxas stands beside it and its PTX can be read in it. "wide share" is the share of 16-byte loads in the bytes that
the PTX's loads from global memory name, each instruction counted once: the element-wise ends of a row and its scalars make
it less than 1, though they run once a row. Nothing here is a measurement of time.

Exit code 1 where a kernel spills more than one register, or where nothing was found.
"""
import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys

MOST_SPILLS = 8  # bytes: one register stored and loaded, which a kernel that is shaped for one architecture meets on another
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
PTX_ENTRY = re.compile(r"^(?:\.visible |\.weak )*\.entry (\w+)\(", re.M)
LOAD = re.compile(r"\bld\.global((?:\.\w+(?:::\w+)*)+)")


def ptxas_facts(text):
    """{(kernel, architecture): facts} from the output of ptxas -v."""
    facts, current = {}, None
    for line in text.splitlines():
        if match := ENTRY.search(line):
            current = facts.setdefault(match.groups(), {})
        elif current is not None and (match := SPILL.search(line)):
            current["stack"], stores, loads = map(int, match.groups())
            current["spills"] = stores + loads
        elif current is not None and (match := USED.search(line)):
            current["registers"] = int(match[1])
            shared = SHARED.search(line)
            current["shared"] = int(shared[1]) if shared else 0
    return facts


def load_bytes(suffix):
    """Bytes of one load instruction, from what follows ld.global: ".nc.v4.u32" is 16."""
    vector = re.search(r"\.v(\d)\b", suffix)
    element = re.search(r"\.[bfus](\d+)$", suffix)
    return (int(vector[1]) if vector else 1) * int(element[1]) // 8 if element else 0


def global_loads(binary):
    """{kernel: bytes of each load from global memory} of the PTX that stands uncompressed in an object file."""
    loads = {}
    for module in re.findall(rb"\.version \d[^\0]*", binary):
        text = module.decode("ascii", "replace")
        entries = list(PTX_ENTRY.finditer(text))
        for entry, following in zip(entries, [*entries[1:], None]):
            body = text[entry.end() : following.start() if following else len(text)]
            loads[entry[1]] = [load_bytes(match[1]) for match in LOAD.finditer(body)]
    return loads


def demangle(names):
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if not tool or not names:
        return {name: name for name in names}
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    plain = []
    for line in text.splitlines():
        line = re.sub(r"^void ", "", line)
        line = line.replace("isentrope::kernels::", "").replace("(anonymous namespace)::", "")
        depth, end = 0, len(line)
        for i, c in enumerate(line):  # cut the parameters: the first parenthesis outside the template arguments
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0:
                end = i
                break
        plain.append(re.sub(r"\((?:int|bool)\)", "", line[:end]))
    return dict(zip(names, plain))


def collect(objects):
    rows = []
    for path in map(pathlib.Path, objects):
        report = path.with_name(path.name + ".ptxas")
        if not report.exists():
            sys.exit(f"resource_report: {report} is missing: was {path.name} compiled through cmake/keep_ptxas.sh?")
        loads = global_loads(path.read_bytes())
        for (kernel, architecture), facts in ptxas_facts(report.read_text()).items():
            sizes = loads.get(kernel)
            if sizes is None:
                sys.exit(f"resource_report: no PTX of {kernel} in {path}: compile with --no-compress for a virtual architecture too")
            wide = sum(size == 16 for size in sizes)
            rows.append({
                "source": path.name.split(".")[0], "kernel": kernel, "architecture": architecture, **facts,
                "loads": len(sizes), "loads_16_bytes": wide,
                "wide_share": round(16 * wide / sum(sizes), 3) if sizes else None,
            })  # fmt: skip
    names = demangle([row["kernel"] for row in rows])
    for row in rows:
        row["kernel"] = names[row["kernel"]]
    return sorted(rows, key=lambda row: (row["source"], row["kernel"], row["architecture"]))


def table(rows):
    """One line a kernel: registers on each architecture, and the most that any of them has of the rest."""
    architectures = sorted({row["architecture"] for row in rows}, key=lambda name: int(re.sub(r"\D", "", name)))
    kernels = {}
    for row in rows:
        kernels.setdefault(row["kernel"], {})[row["architecture"]] = row
    lines = [["kernel", *(f"registers {name}" for name in architectures), "spills", "stack", "shared", "16-byte loads", "wide share"]]
    for name, of in kernels.items():
        registers = [of[a]["registers"] if a in of else "-" for a in architectures]
        most = [max(row[key] for row in of.values()) for key in ("spills", "stack", "shared")]
        first = next(iter(of.values()))
        share = first["wide_share"]
        lines.append([name, *registers, *most, f"{first['loads_16_bytes']} of {first['loads']}", "-" if share is None else f"{share:.2f}"])
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(line, widths)))
                     for line in lines) + "\n"  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, help="write the report there")
    parser.add_argument("--table", type=pathlib.Path, help="write the table there instead of printing it")
    parser.add_argument("objects", nargs="+")
    arguments = parser.parse_args()
    rows = collect(arguments.objects)
    if not rows:
        sys.exit("resource_report: ptxas reported no kernel")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.table:
        arguments.table.write_text(table(rows))
    else:
        print(table(rows), end="")
    spilling = [f"{row['kernel']} ({row['architecture']}): {row['spills']} bytes" for row in rows if row["spills"] > MOST_SPILLS]
    if spilling:
        if arguments.json:
            arguments.json.unlink()  # the build must not take it for done
        sys.exit("resource_report: registers spill to memory; use fewer threads a block or smaller tiles in\n  " +
                 "\n  ".join(spilling))  # fmt: skip


if __name__ == "__main__":
    main()
