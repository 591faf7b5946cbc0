"""A run as one HTML page that needs nothing else: no scripts, no network."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from .charts import draw_charts
from .tables import Table, mismatch_lines, sweep_verdict, tables_of, verdict

__all__ = ["render_page"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1300px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .2em .8em; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1em }
.bad { color: #b00 }
pre { background: #f6f6f6; padding: 1em; white-space: pre-wrap; overflow-wrap: anywhere }
"""


def render_page(document: dict[str, Any]) -> str:
    """The page of a result, whatever its names and texts hold."""
    parts = [_head(document)]
    if document["sweep"] is not None:
        parts.append(f"<p>{escape(sweep_verdict(document['sweep']))}</p>")
    if document["verification"] is not None:
        parts.append(_verification(document["verification"]))
    parts += [f'<p class="bad">Warning: {escape(text)}.</p>' for text in document["client"]["warnings"]]
    parts += [_table(table) for table in tables_of(document)]
    parts.append(f'<div class="charts">{"".join(f"<div>{svg}</div>" for svg in draw_charts(document))}</div>')
    about = {name: document[name] for name in ("client", "machine", "options")}
    parts.append(f"<h2>Load tester, machine, options</h2><pre>{escape(json.dumps(about, indent=1))}</pre>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>reft bench</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _head(document: dict[str, Any]) -> str:
    options = document["options"]
    where = f"{options['model'] or 'a model'} at {options['url']}, {document['created']}"
    interrupted = '<p class="bad">The run was interrupted.</p>' if document["is_interrupted"] else ""
    return f"<h1>reft bench</h1><p>{escape(where)}</p>{interrupted}"


def _verification(verification: dict[str, Any]) -> str:
    mark = ' class="bad"' if verification["num_mismatches"] else ""
    lines = [line for item in verification["mismatches"] for line in (*mismatch_lines(item, 10_000), "")]
    listing = f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""
    return f"<p{mark}>{escape(verdict(verification))}</p>{listing}"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
