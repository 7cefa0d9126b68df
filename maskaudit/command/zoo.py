"""What `maskaudit zoo` does: list the models, train their networks, check verdicts against the truth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskaudit import api
from maskaudit.auditing.runner import Audit
from maskaudit.errors import InputError, UsageError
from maskaudit.report import words
from maskaudit.report.lines import columns
from maskaudit.settings import AuditSettings
from maskaudit.zoo import ZOO, ZooEntry
from maskaudit.zoo.establish import establish, subject
from maskaudit.zoo.grade import Grade, grade
from maskaudit.zoo.networks import cache_path, network
from maskaudit.zoo.truth import TRUTH_FILE, Truth, disagreements, read_truths, truth_of, write_truths

#: Columns of the list, with their widths.
COLUMNS = (("name", 26), ("data", 14), ("truth", 11), ("level", 9), ("mechanism", 28), ("location", 20),
           ("best known", 11), ("part", 5))  # fmt: skip


def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names asked for, or all of the zoo.

    Raises:
        UsageError: for a name that the zoo does not have.
    """
    for name in names:
        if name not in ZOO:
            raise UsageError(f"The zoo has no model {name!r}; `maskaudit zoo list` shows what it has.")
    return names or tuple(ZOO)


def list_zoo() -> list[dict[str, Any]]:
    """Every entry as plain data, with its established figures where there are some."""
    rows = []
    for entry in ZOO.values():
        truth = truth_of(entry.name)
        figures = None
        if truth is not None:
            figures = {
                "clean": round(truth.clean, 4),
                "best_known": round(truth.best_known, 4),
                "certified": truth.certified_accuracy,
                "gradient_gap": round(truth.gradient_gap, 4),
                "loss_gap": round(truth.loss_gap, 4),
                "points": len(truth.points),
            }
        rows.append({**entry.to_dict(), "truth": figures})
    return rows


def zoo_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The list as lines of text, the first with the names of the columns."""
    yield _columns([name for name, _ in COLUMNS])
    for row in rows:
        figures = row["truth"]
        yield _columns([
            row["name"], row["data"], "masked" if row["masked"] else "not masked", row["level"] or "-",
            " or ".join(row["mechanisms"]) or "-", _place(row),
            f"{figures['best_known']:.3f}" if figures else "?", row["part"],
        ])  # fmt: skip


def _place(row: dict[str, Any]) -> str:
    if row["module"] is None:
        return "-"
    return (row["module"] or "root") + (f": {row['ops'][0]}" if row["ops"] else "")


def _columns(cells: list[str]) -> str:
    return columns(cells, [width for _, width in COLUMNS])


def train_zoo(names: tuple[str, ...]) -> Iterator[str]:
    """Train the networks behind models that are not in the cache yet; yields a line for each network.

    Each network is kept as soon as it is trained, and one that was interrupted goes on where it was.
    """
    networks = list(dict.fromkeys(ZOO[name].network for name in chosen(names)))
    for number, key in enumerate(networks, 1):
        cached, started = cache_path(key).is_file(), time.monotonic()
        network(key)
        done = "was in the cache" if cached else f"trained in {words.seconds(time.monotonic() - started)}"
        yield f"{number} of {len(networks)}  {key} {done}"


def check_zoo(names: tuple[str, ...], *, budget: str, seed: int) -> Iterator[tuple[str, bool]]:
    """Audit zoo models; yields a line and whether label, mechanism, location and best known fit the truth."""
    for name in chosen(names):
        document = audit_entry(ZOO[name], AuditSettings(budget=budget, seed=seed))
        graded = grade(ZOO[name], truth_of(name), document)
        yield check_line(name, document, graded), not graded.wrong


def audit_entry(entry: ZooEntry, settings: AuditSettings) -> dict[str, Any]:
    """Audit a zoo model in its own ball, on its own data; the report in JSON form."""
    return audit_of_the_zoo(entry, settings).report.to_dict()


def audit_of_the_zoo(entry: ZooEntry, settings: AuditSettings) -> Audit:
    """Audit a zoo model in its own ball, on its own data: the request that `check` would make with these options."""
    request = api.Request(f"zoo:{entry.name}", data=entry.data, norm=entry.norm, eps=entry.eps, settings=settings)
    return api.run(api.prepare(request))


def check_line(name: str, document: dict[str, Any], graded: Grade) -> str:
    """One line on the audit of a zoo model: right or wrong in what, verdict, figures, cause, cost."""
    accuracy, masking, verdict = document["accuracy"], document["masking"], document["verdict"]
    figures = [f"{key} {accuracy[key]['value']:.3f}" for key in ("clean", "reference", "best_known")]
    if graded.distance is not None:
        figures.append(f"truth {graded.distance:+.3f}")
    figures += [f"{key} {masking[key + '_level']['value']:.3f}" for key in ("gradient", "loss")]
    cause = ""
    if verdict["mechanisms"]:
        first = verdict["mechanisms"][0]
        at = [f"{place['module'] or 'root'}:{place['op']}" for place in first["locations"][:1]]
        cause = " ".join(["  cause", first["id"], *at])
    mark = f"WRONG ({', '.join(graded.wrong)})" if graded.wrong else "right"
    cost = f"n {document['settings']['samples']}  {document['timing']['total_seconds']} s"
    return f"{mark}  {name:<24} {verdict['label']:<13} {'  '.join(figures)}{cause}  {cost}"


def establish_truths(names: tuple[str, ...], path: Path = TRUTH_FILE) -> Iterator[str]:
    """Establish and write the records of models whose recipe changed or that have none; yields a line for each.

    The file is written after every model, so an interrupted run goes on where it stopped. Records of models that
    the zoo no longer has are dropped.

    Raises:
        InputError: when the file cannot be written.
    """
    truths = {name: truth for name, truth in read_truths(path).items() if name in ZOO}
    wanted = chosen(names)
    for number, name in enumerate(wanted, 1):
        started = time.monotonic()
        one = subject(name)
        known = truths.get(name)
        fresh = known is None or known.recipe != one.recipe
        if known is None or fresh:
            known = truths[name] = establish(one)
            try:
                write_truths(truths, path)
            except OSError as error:
                raise InputError(f"{path} cannot be written ({error.strerror}); name another file (--out).") from error
        seconds = words.seconds(time.monotonic() - started) if fresh else "unchanged"
        yield f"{number} of {len(wanted)}  {truth_line(known)}  {seconds}"
        yield from disagreements(ZOO[name], known)


def truth_line(truth: Truth) -> str:
    """One line with the established figures of a model."""
    figures = (f"clean {truth.clean:.3f}  best known {truth.best_known:.3f}  G* {truth.strong_accuracy:.3f}  "
               f"CE* {truth.cross_entropy_accuracy:.3f}  hidden by gradients {truth.gradient_gap:.3f}, "
               f"by the loss {truth.loss_gap:.3f}")  # fmt: skip
    certified = truth.certified_accuracy
    return f"{truth.name:<24} {figures}" + ("" if certified is None else f"  certified {certified:.3f}")
