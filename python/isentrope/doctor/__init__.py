"""``isentrope doctor RUN [RUN …]``: what ails a run, by its metrics.

columns.py makes columns of the metrics, table.py has the rules, policy.py and training.py what they look for, examination.py tells what
they found; the page of ``isentrope report`` shows the same. rates.py measures how often each rule speaks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

DESCRIPTION = """\
Read the metrics of runs and say what ails them: each finding with its figures and steps, a small picture, the likely cause, and
the key of the configuration to change. A rule without the metrics that it needs is not judged, and says which. A RUN is the
folder of a run, of a finished one or one under way, or a folder of runs. The rules: docs/doctor.md.
"""

EXIT = "The exit code is 0 whatever is found; with --strict 1 where there is a finding; 1 for a folder that is no run or a line that cannot be read."


def examined(words: Sequence[str], as_json: bool) -> tuple[str, int, str]:
    """What is printed of the runs, how many findings there are, and which: equal texts are equal findings. Raises ReportError."""
    from isentrope.doctor.examination import BARS, PLAIN, as_object, examine, text
    from isentrope.report import ReportError, runs_of
    from isentrope.report.runs import read_run

    folders = runs_of(words)
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise ReportError(f"{folder}: named twice; name each run once")
    found = [examine(read_run(folder)) for folder in folders]
    which = json.dumps([[str(one.run.folder), finding.rule.name, finding.phase] for one in found for finding in one.findings])
    number = sum(len(one.findings) for one in found)
    if as_json:
        return json.dumps({"runs": [as_object(one) for one in found]}, ensure_ascii=False, allow_nan=False), number, which
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        BARS.encode(encoding)
        bars = BARS
    except (UnicodeEncodeError, LookupError):
        bars = PLAIN
    told = "\n\n".join(text(one, bars) for one in found)
    return told.encode(encoding, "replace").decode(encoding), number, which


def watch(words: Sequence[str], as_json: bool, interval: float, said: str) -> None:
    """Prints anew whenever other rules speak than in `said`, until Ctrl-C."""
    from isentrope.report import ReportError, runs_of, say

    seen: list[tuple[int, int]] | None = None
    while True:
        time.sleep(interval)
        try:
            files = [folder / name for folder in runs_of(words) for name in ("metrics.jsonl", "config.yaml")]
            now = [(s.st_size, s.st_mtime_ns) for s in (file.stat() for file in files if file.exists())]
            if now == seen:
                continue
            seen = now
            told, _, which = examined(words, as_json)
        except FileNotFoundError as error:
            raise ReportError(f"{error.filename}: it has gone") from None
        if which != said:
            said = which
            say(told if as_json else f"\n{told}", "")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 after an error or with --strict after a finding, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="isentrope doctor", description=DESCRIPTION, epilog=EXIT, allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, or of runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where there is a finding")
    parser.add_argument("--watch", action="store_true", help="print again whenever other rules speak, until Ctrl-C; with --json a line each time")
    parser.add_argument("--interval", metavar="SECONDS", type=float, default=5.0,
                        help="with --watch: seconds between two looks at the files (default: 5)")  # fmt: skip
    options = parser.parse_args(argv)
    if not 0 < options.interval < float("inf"):
        parser.error(f"--interval: {options.interval} s; wanted more than 0")
    if options.watch and options.strict:
        parser.error("--strict ends with what was found, and --watch never ends: give one of them")
    from isentrope.report import ReportError, say

    try:
        told, number, which = examined(options.runs, options.json)
        say(told, "")
        if options.watch:
            watch(options.runs, options.json, options.interval, which)
        return 1 if options.strict and number else 0
    except ReportError as error:
        print(f"isentrope doctor: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        if error.name not in ("jinja2", "markupsafe", "yaml", "numpy"):
            raise
        print(f"isentrope doctor: the Python package {error.name} is missing: pip install 'isentrope[report]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


__all__ = ["examined", "main", "watch"]
