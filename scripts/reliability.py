#!/usr/bin/env python3
"""Attacks the product and counts what breaks: configurations, files, examples, kills.

    reliability.py [--part NAME …] [--full | --quick] [--count N] [--seed N] [--jobs N] [--markdown docs/reliability.md]

Parts: configurations, damage, examples, kills; each a file in scripts/attacks that says what it does and what is right. Every
attack is drawn from (seed, part, number), so that `--part damage --only 17` makes number 17 again. Verdicts are kept in
build/reliability, with the inputs of those that went wrong, and attacks that were made on the same build are not made
again: a stopped run goes on where it was. Prints a table; exit code 1 where anything went wrong.

--markdown puts the table into a page, between its marks.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import random
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from attacks import trial  # noqa: E402

PARTS = ["configurations", "damage", "examples", "kills"]
MARKS = ("<!-- figures: written by scripts/reliability.py -->", "<!-- end of figures -->")


def build_of():
    """Names the build that is attacked: a verdict about another one says nothing."""
    import torch  # noqa: F401  (before the extension; and forked processes then find it loaded)
    import isentrope
    from isentrope import _C

    digest = hashlib.sha256()
    for path in sorted([Path(_C.__file__), *Path(isentrope.__file__).parent.rglob("*.py"), *Path(isentrope.__file__).parent.rglob("*.so")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Part:
    """The attacks of one module of scripts/attacks, with the verdicts that are kept of them."""

    def __init__(self, name, folder, seed, build):
        self.name, self.module = name, importlib.import_module(f"attacks.{name}")
        self.folder, self.seed, self.build = folder / name, seed, build
        self.file = self.folder / f"verdicts-{seed}.jsonl"
        sources = [Path(self.module.__file__), Path(trial.__file__)]
        self.key = f"{build}-{hashlib.sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()[:16]}"

    def kept(self):
        """{number: verdict} of this build and these attacks."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        verdicts = [json.loads(line) for line in lines if line.endswith("}")]
        return {verdict["number"]: verdict for verdict in verdicts if verdict["key"] == self.key}

    def attack(self, number):
        folder = self.folder / "now" / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        trial.workplace(folder)
        begun = time.monotonic()
        rng = random.Random(f"{self.seed}/{self.name}/{number}")
        verdict = self.module.attack(self.context, rng, folder, number)
        verdict |= {"number": number, "key": self.key, "seconds": round(time.monotonic() - begun, 2), "right": verdict["class"] in self.module.RIGHT}
        verdict["message"] = verdict["message"][:3000]
        wrong = self.folder / "wrong" / str(number)
        shutil.rmtree(wrong, ignore_errors=True)
        if not verdict["right"]:
            wrong.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder, wrong)
        shutil.rmtree(folder, ignore_errors=True)
        return verdict

    def run(self, numbers, jobs, quick, show=lambda verdict: None):
        """The verdicts of these numbers, made or kept."""
        kept = self.kept()
        todo = [number for number in numbers if number not in kept]
        if todo:
            self.folder.mkdir(parents=True, exist_ok=True)
            prepared = self.folder / "prepared" / self.key  # what another build left is no measure of this one
            for old in prepared.parent.glob("*"):
                if old != prepared:
                    shutil.rmtree(old)
            self.context = self.module.prepare(prepared, quick)
            with self.file.open("a") as file:
                for verdict in over(jobs, self.attack, todo):
                    kept[verdict["number"]] = verdict
                    file.write(json.dumps(verdict) + "\n")
                    file.flush()
                    show(verdict)
        return [kept[number] for number in numbers]


def over(jobs, function, numbers):
    """function of each number, in `jobs` processes; in the order in which they are done."""
    if jobs == 1:
        yield from map(function, numbers)
        return
    global call  # what a forked process finds without its being pickled
    call = function
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(called, numbers)


def called(number):
    return call(number)


def table(results):
    """Markdown of [(part, verdicts)]."""
    lines = ["| attack | tried | right | wrong |", "| --- | ---: | --- | --- |"]
    for part, verdicts in results:
        counts = {}
        for verdict in verdicts:
            counts.setdefault(verdict["right"], {}).setdefault(verdict["class"], 0)
            counts[verdict["right"]][verdict["class"]] += 1
        told = [", ".join(f"{count} {name}" for name, count in sorted(counts.get(right, {}).items(), key=lambda item: -item[1])) for right in (True, False)]
        extra = "".join(f", {sum(v[key] for v in verdicts)} {key}" for key in ("kills", "half-written checkpoints") if key in verdicts[0])
        lines.append(f"| {part.module.TITLE} | {len(verdicts)}{extra} | {told[0] or '0'} | {told[1] or '0'} |")
    return "\n".join(lines)


def show_wrong(part, verdicts, most=40):
    wrong = [verdict for verdict in verdicts if not verdict["right"]]
    for verdict in wrong[:most]:
        print(f"{part.name} {verdict['number']}: {verdict['class']}: {verdict['attack']}\n    {verdict['message'][:300]!r}")
    if wrong:
        print(f"{part.name}: {len(wrong)} wrong; their files: {part.folder / 'wrong'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="these parts alone")
    parser.add_argument("--full", action="store_true", help="as many as the page tells: about 20 minutes on two cores")
    parser.add_argument("--quick", action="store_true", help="a minute's sample (the default)")
    parser.add_argument("--count", type=int, help="attacks a part")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="these numbers alone, once more")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="attacks at a time (2)")
    parser.add_argument("--folder", type=Path, default=trial.ROOT / "build" / "reliability", help="where verdicts and inputs are kept")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table into this page")
    options = parser.parse_args()
    quick = not options.full
    folder = options.folder.resolve()
    build = build_of()
    trial.program()
    results = []
    for name in options.part:
        part = Part(name, folder, options.seed, build)
        count = options.count or part.module.COUNTS["quick" if quick else "full"]
        numbers = options.only or list(range(count))
        if options.only:
            part.kept = dict
        begun = time.monotonic()
        results.append((part, part.run(numbers, options.jobs, quick)))
        show_wrong(part, results[-1][1])
        print(f"{name}: {len(numbers)} in {time.monotonic() - begun:.0f} s", flush=True)
    figures = table(results)
    print("\n" + figures)
    if options.markdown:
        page = options.markdown.read_text()
        before, rest = page.split(MARKS[0])
        options.markdown.write_text(f"{before}{MARKS[0]}\n{figures}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    return 0 if all(verdict["right"] for _, verdicts in results for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
