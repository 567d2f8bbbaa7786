"""What `isentrope diagnose` found of a model, as a section of the page, and as a page of its own."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from isentrope.report import samples

ROWS = 60  # of a table on the page; all are in the CSV
KINDS = {"png": "image/png", "svg": "image/svg+xml"}


def cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shown(table: dict[str, Any]) -> dict[str, Any]:
    """heads, and the first rows as texts."""
    heads = [f"{column['name']} ({column['unit']})" if column["unit"] else column["name"] for column in table["columns"]]
    return {"heads": heads, "rows": [[cell(value) for value in row] for row in table["rows"][:ROWS]], "left_out": max(0, len(table["rows"]) - ROWS)}


def diagnoses(folder: Path) -> list[dict[str, Any]]:
    """Of each NAME.json of the folder what stands on a page; a file that is none of `isentrope diagnose` is passed over."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            tables = [("", shown(told)), *((name, shown(table)) for name, table in told["tables"].items())]
            image = next((name for name in told["figures"] if (folder / name).exists()), None)
            data = base64.b64encode((folder / image).read_bytes()).decode() if image else ""
            top = samples.strongest([h for text in told["texts"] for h in text["entropy"]])
            found.append(
                {
                    "name": told["measure"],
                    "what": told["what"],
                    "variant": told["variant"],
                    "source": told["source"],
                    "numbers": [(name, cell(value)) for name, value in told["numbers"].items()],
                    "notes": told["notes"],
                    "tables": tables,
                    "image": f"data:{KINDS[image.rsplit('.', 1)[1]]};base64,{data}" if image else "",
                    "texts": [{"title": text["title"], "tokens": samples.shaded(text["tokens"], text["entropy"], top, text.get("surprise"))} for text in told["texts"]],
                    "top": top,
                    "of": ", ".join(told["models"]) + (f", {told['sequences']} sequences of {told['data']}" if told["data"] else ""),
                }
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def page_of(folder: Path) -> str:
    """All results of a folder as HTML."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("isentrope.report", "."), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)  # fmt: skip
    style = (Path(__file__).parent / "page.css").read_text()
    return environment.get_template("diagnose.html.j2").render(diagnoses=diagnoses(folder), style=Markup(style), shades=samples.SHADES)
