"""What was found, as files: NAME.json, NAME.csv (and NAME.TABLE.csv), NAME.png or .svg, and one page of all of a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from isentrope.diagnose.measure import DiagnoseError, Measure, Result


def drawn(result: Result, file: Path) -> None:
    """The figure, in the format that the name says."""
    import matplotlib
    from matplotlib.figure import Figure

    assert result.draw is not None
    with matplotlib.rc_context({"svg.hashsalt": "isentrope", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=result.size, dpi=110, layout="constrained")
        result.draw(figure)
        metadata = {"Date": None} if file.suffix == ".svg" else {}
        figure.savefig(file, metadata=metadata)


def write(folder: Path, kind: type[Measure], result: Result, options: Mapping[str, Any], about: Mapping[str, Any], figures: str = "png") -> Iterator[str]:
    """Writes one result; yields what a person is told. Raises DiagnoseError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiagnoseError(f"--output {folder}: cannot be made: {error.strerror}; name another folder") from None
    name = kind.NAME
    for old in [*folder.glob(f"{name}.*.csv"), *folder.glob(f"{name}.png"), *folder.glob(f"{name}.svg")]:
        old.unlink()  # of an earlier measurement
    files = []
    if result.draw is not None:
        for ending in ("png", "svg") if figures == "both" else (figures,):
            drawn(result, folder / f"{name}.{ending}")
            files.append(f"{name}.{ending}")
    (folder / f"{name}.csv").write_text(result.table.csv(), encoding="utf-8")
    for key, table in result.tables.items():
        (folder / f"{name}.{key}.csv").write_text(table.csv(), encoding="utf-8")
    told = {
        "measure": name,
        "what": kind.WHAT,
        "source": kind.SOURCE,
        "variant": result.variant,
        **about,
        "options": dict(options),
        "numbers": result.numbers,
        "notes": result.notes,
        **result.table.as_object(),
        "tables": {key: table.as_object() for key, table in result.tables.items()},
        "texts": result.texts,
        "figures": files,
    }
    beside = folder / f".{name}.json.{os.getpid()}.tmp"
    beside.write_text(json.dumps(told, ensure_ascii=False, allow_nan=False, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, folder / f"{name}.json")  # last: what is read is whole
    yield f"{name}: {kind.WHAT}"
    for key, value in result.numbers.items():
        yield f"  {key}: {value:.4g}" if isinstance(value, float) else f"  {key}: {value}"
    for note in result.notes:
        yield f"  note: {note}"
    yield f"  {folder / name}.json, .csv" + "".join(f", .{file.rsplit('.', 1)[1]}" for file in files)


def write_page(folder: Path) -> Path:
    """diagnose.html: every result of the folder."""
    from isentrope.report.diagnosis import page_of

    file = folder / "diagnose.html"
    file.write_text(page_of(folder), encoding="utf-8")
    return file
