"""The HTML report: one file that opens from disk, needs no network and no script.

All markup is in the templates; everything that comes from the document passes
Jinja's autoescaping. The only markup let through are the figures that
`maskaudit.report.plots` draws, whose text matplotlib escapes, and our own
stylesheet.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from maskaudit.errors import MaskauditError
from maskaudit.report import (
    advice,
    blind_spots,
    coerce,
    images,
    layers,
    methods,
    null_distribution,
    plan,
    plots,
    points,
    surface,
    view,
    words,
)
from maskaudit.report.records import by_reason

#: Places of one finding or mechanism that are listed; the JSON has all.
MAX_PLACES = 12


#: In the order of precedence.
STYLESHEETS = ("report.css", "sections.css", "print.css")


def render(document: dict[str, Any]) -> str:
    """The report as one HTML document.

    Args:
        document: the parsed JSON report.

    Raises:
        InputError: when the document is not a report that this version can read.
    """
    report = view.read(document)
    figures = coerce.mapping(document.get("figures"))
    slice_ = surface.read(figures.get("surface"))
    clean = report.accuracy["clean"]
    walks = blind_spots.read(document)
    matrix = points.read(document, report)
    tests = null_distribution.read(document)
    flow = layers.read_flow(figures.get("gradient_flow"))
    eps_curve, step_curves = plots.eps_curve(report, figures.get("eps_curve")), plots.step_curves(report)
    return page(
        "report.html",
        report=report,
        style=Markup("".join(map(asset, STYLESHEETS))),
        eps_curve=eps_curve,
        curved=eps_curve is not None or step_curves is not None,
        eps_points=max((coerce.count(row.get("n")) for row in coerce.mappings(figures.get("eps_curve"))), default=0),
        drawn=clean.n if clean else 0,
        step_curves=step_curves,
        slice=slice_,
        surfaces=plots.surfaces(slice_),
        strips=images.strips(figures.get("strips")),
        walks=walks,
        walked=blind_spots.draw(walks),
        matrix=matrix,
        matrix_caption=points.caption(matrix) if matrix else "",
        tests=[(test, null_distribution.draw(test)) for test in tests],
        flow=layers.flow(flow),
        depth=layers.depth(document),
        repairs=layers.repairs(document, report),
        plan=plan.read(document),
        branches=_branches(document),
        checklist=advice.read(document, report),
        methods=methods.read(document, report),
        words=words,
        max_places=MAX_PLACES,
    )


def page(template: str, **names: Any) -> str:
    """What a template makes of these names, without blank lines."""
    text = environment().get_template(template).render(**names)
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def _branches(document: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """The branches that were searched: path of the module, and numbers of points."""
    rows = coerce.mappings(document.get("branches"))[:MAX_PLACES]
    keys = ("points", "whole", "alone", "masked", "no_gradient", "without_correct", "without_fooled")
    return [(coerce.text(row.get("branch"), "?"), {key: coerce.count(row.get(key)) for key in keys}) for row in rows]


@cache
def environment() -> Environment:
    """Jinja with everything escaped and every name required to exist."""
    made = Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters["percent"] = words.percent
    made.filters["by_reason"] = by_reason
    made.filters["along"] = _along
    made.filters["verbatim"] = _verbatim
    made.tests["some"] = lambda value: value is not None
    return made


def _along(value: float) -> str:
    """A share as a CSS percentage of a track, held inside it."""
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%"


def _verbatim(text: str) -> Markup:
    """Text whose line ends survive the page, in which blank lines are left out: they become character references."""
    return Markup(str(escape(text)).replace("\n", "&#10;"))


def asset(name: str) -> str:
    """The text of a template or stylesheet, from the installed package or from the checkout."""
    for folder in folders():
        file = folder.joinpath(name)
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise MaskauditError(f"The report template {name} is missing: the installation is incomplete; install again.")


def folders() -> list[Traversable]:
    """`maskaudit.report.templates` where it is installed, then `templates/` of the checkout."""
    checkout: Traversable = Path(__file__).resolve().parents[2] / "templates"
    try:
        return [resources.files("maskaudit.report.templates"), checkout]
    except ModuleNotFoundError:
        return [checkout]
