"""The summary of a gate as one HTML page: no network, no script, links to the reports of the models."""

from __future__ import annotations

from html import escape
from typing import Any
from urllib.parse import quote

from maskaudit.gate.summary import HEADER, notes, row, told

_STYLE = """
:root { color-scheme: light dark; --line: #c9ced6; --bad: #b3261e; --good: #1b6e3c; --open: #0b5f7a; }
@media (prefers-color-scheme: dark) { :root { --line: #444b55; --bad: #ff9d94; --good: #83d6a2; --open: #86d0ea; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .4rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
h2 { font-size: 1.1rem; overflow-wrap: anywhere; }
.s0 { color: var(--good); } .s3 { color: var(--open); } .s1, .s2, .s4 { color: var(--bad); font-weight: 600; }
@media print { body { margin: 0; max-width: none; } }
"""


def html(summary: dict[str, Any]) -> str:
    """The page.

    Args:
        summary: what `maskaudit.gate.summary.build` gave.
    """
    state = "passed" if summary["status"] == 0 else "did not pass"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in HEADER)
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>maskaudit gate {state}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>maskaudit gate {state}</h1>",
        '<div class="scroll" tabindex="0" role="region" aria-label="Models">'
        f"<table><thead><tr>{head}</tr></thead><tbody>",
        *(_row(model) for model in summary["models"]),
        "</tbody></table></div>",
    ]
    for model in summary["models"]:
        if lines_of := told(model):
            items = "".join(f"<li>{escape(line)}</li>" for line in lines_of)
            lines.append(f"<section><h2>{escape(row(model)[0])}</h2><ul>{items}</ul></section>")
    if found := notes(summary):
        lines.append(
            "<section><h2>Baselines</h2><ul>" + "".join(f"<li>{escape(n)}</li>" for n in found) + "</ul></section>"
        )
    lines.append(f"<p>Exit status {summary['status']}.</p></main></body></html>")
    return "\n".join(lines) + "\n"


def _row(model: dict[str, Any]) -> str:
    name, *cells, gate = row(model)
    shown = escape(name)
    if model["report"]:
        target = quote(model["report"].rpartition("/")[0]) + "/report.html"
        shown = f'<a href="{target}">{shown}</a>'
    body = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{shown}</th>{body}<td class="s{model["status"]}">{escape(gate)}</td></tr>'
