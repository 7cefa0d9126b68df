"""Tables and pictures of the study of gradient adversarial training, from its committed records."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from benchmarks.records import RecordFile

HERE = Path(__file__).resolve().parent
PICTURES = HERE.parent / "docs" / "great"
RECORDS = HERE / "great-small.jsonl"

Record = Mapping[str, Any]

#: Columns of tables 1 and 2, and what they are called in the records.
COLUMNS = {
    "FGSM": "FGSM untargeted", "iFGSM": "iFGSM untargeted", "FGSM, least likely": "FGSM worst",
    "FGSM, random": "FGSM random", "iFGSM, least likely": "iFGSM worst", "iFGSM, random": "iFGSM random",
}  # fmt: skip
#: Sinha et al. 2018, tables 1 and 2, in %: train, no attack, then `COLUMNS`.
TABLE_1 = {
    "Baseline": (99.97, 93.32, 32.75, 1.99, 72.89, 10.43, 89.59, 18.29),
    "Adversarial": (99.97, 89.91, 56.88, 16.73, 82.07, 45.26, 89.81, 69.89),
    "GREACE": (92.56, 89.84, 77.90, 72.40, 83.39, 66.23, 87.13, 79.10),
    "GREAT": (99.53, 91.95, 47.51, 15.45, 72.73, 12.78, 89.62, 21.95),
    "GRE(AT+CE)": (90.87, 89.97, 81.28, 77.04, 84.53, 73.52, 88.57, 82.38),
}
TABLE_2 = {
    "Baseline": (99.97, 96.20, 45.97, 6.26, 96.20, 96.20, 80.27, 15.65),
    "Adversarial": (99.98, 94.92, 58.70, 8.41, 94.92, 94.92, 83.70, 19.19),
    "GREACE": (93.52, 93.71, 73.65, 80.13, 93.70, 93.70, 89.26, 88.09),
    "GREAT": (99.76, 95.58, 45.95, 5.95, 95.58, 95.58, 79.09, 15.68),
    "GRE(AT+CE)": (92.95, 93.90, 74.12, 79.36, 93.89, 93.90, 89.56, 87.37),
}
#: Table 3, CIFAR-10, CNN-5 and ResNet-18, in %: all examples, 5 %.
TABLE_3 = {"Baseline": (84.74, 65.41), "Distillation": (85.69, 66.45), "GREAT": (85.72, 66.55)}
#: Table 4, CIFAR-10: classification error in %, RMSE of edges and of the clean image.
TABLE_4 = {
    "Equal": (24.0, 0.349, 0.113), "Uncertainty": (26.6, 0.270, 0.090), "GradNorm": (23.5, 0.270, 0.091),
    "GREAT": (24.2, 0.252, 0.087),
}  # fmt: skip
#: Which of the paper's tables is shown next to a radius.
PAPER_TABLES = {"0.1": ("table 1, CIFAR-10", TABLE_1), "0.2": ("table 2, SVHN", TABLE_2)}


def records() -> list[Record]:
    """The committed records, oldest first."""
    return list(RecordFile(RECORDS).read())


def attack_tables() -> str:
    """Per setting and radius: accuracy under the paper's attacks, the paper's figures in brackets."""
    parts = []
    for setting, rows in by_setting(defences()):
        for eps, (name, paper) in PAPER_TABLES.items():
            parts.append(f"**{setting}, ε = {eps}** (in brackets: {name})\n\n")
            parts.append(_row("method", "train", "no attack", *COLUMNS) + _rule(3 + len(COLUMNS)))
            for method, group in by_method(rows):
                ours = [[r["train_accuracy"] for r in group], [r["clean"] for r in group]]
                ours += [[r["attacks"][eps][key] for r in group] for key in COLUMNS.values()]
                theirs = paper.get(method, ())
                cells = [_beside(values, theirs[i] if theirs else None) for i, values in enumerate(ours)]
                parts.append(_row(method, *cells))
            parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


def audit_tables() -> str:
    """Per setting: what the audit says of every network."""
    parts = []
    for setting, rows in by_setting(defences()):
        base = statistics.median(r["seconds_per_epoch"] for r in rows if r["method"] == "Baseline")
        parts.append(f"**{setting}, audited at ε = {rows[0]['eps']:g}**\n\n")
        parts.append(
            _row("method", "seed", "clean", "PGD", "white-box", "best known", "hidden by the loss",
                 "hidden by gradients", "verdict", "zero gradient", "mean logit", "auxiliary", "time") + _rule(13)
        )  # fmt: skip
        for record in rows:
            audit = record["audit"]
            shares = [audit["accuracy"][name] for name in ("clean", "reference", "strong_reference", "best_known")]
            hidden = [audit["masking"][name] for name in ("loss_level", "gradient_level")]
            parts.append(
                _row(record["method"], str(record["seed"]), *map(_percent, [*shares, *hidden]), _verdict(audit),
                     _percent(record["zero_gradient"]), f"{record['mean_logit']:.3g}",
                     _percent(record["auxiliary_accuracy"]), f"×{record['seconds_per_epoch'] / base:.1f}")
            )  # fmt: skip
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


def pictures() -> str:
    """The pictures of every setting, with what they show in words."""
    parts = []
    for number, (setting, rows) in enumerate(by_setting(defences())):
        methods = ", ".join(method for method, _ in by_method(rows) if method in TABLE_1)
        parts.append(f"![Accuracy against ε of {methods} on {setting}](great/curves-{number}.svg)\n\n")
        parts.append(f"![Three images of {setting} and the size of the gradient](great/saliency-{number}.png)\n\n")
    return "".join(parts).rstrip("\n") + "\n"


def distillation_table() -> str:
    """Table 3 next to ours."""
    rows = [r for r in records() if r.get("part") == "distillation"]
    text = _row("method", "all examples", "5 %") + _rule(3)
    for method, paper in TABLE_3.items():
        cells = []
        for fraction, theirs in zip((1.0, 0.05), paper, strict=True):
            values = [r["student"] for r in rows if r["method"] == method and r["fraction"] == fraction]
            cells.append(_beside(values, theirs))
        text += _row(method, *cells)
    return text


def multitask_table() -> str:
    """Table 4 next to ours."""
    rows = [r for r in records() if r.get("part") == "multi-task"]
    text = _row("weighting", "error", "edges, RMSE", "clean image, RMSE") + _rule(4)
    for method, (error, edges, denoised) in TABLE_4.items():
        group = [r for r in rows if r["method"] == method]
        roots = [
            _spread([r["rmse"][name] for r in group], 3) + f" ({theirs:.3f})"
            for name, theirs in (("edges", edges), ("denoised", denoised))
        ]
        text += _row(method, _beside([r["error"] for r in group], error), *roots)
    return text


REGIONS: dict[str, Callable[[], str]] = {
    "great-attacks": attack_tables,
    "great-audits": audit_tables,
    "great-pictures": pictures,
    "great-distillation": distillation_table,
    "great-multitask": multitask_table,
}


def write_pictures(found: Sequence[Record]) -> None:
    """Curves and saliency maps of every setting."""
    PICTURES.mkdir(exist_ok=True)
    with matplotlib.style.context(["default", {"svg.hashsalt": "maskaudit", "svg.fonttype": "none"}]):
        for number, (_, rows) in enumerate(by_setting([r for r in found if "audit" in r])):
            chosen = [group[0] for method, group in by_method(rows) if method in TABLE_1]
            _curves(chosen).savefig(PICTURES / f"curves-{number}.svg", metadata={"Date": None})
            _saliency(chosen).savefig(PICTURES / f"saliency-{number}.png", metadata={"Software": None}, dpi=70)


def _curves(rows: Sequence[Record]) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, record in enumerate(rows):
        for loss, line in (("cross-entropy", "-"), ("margin", ":")):
            points = [(point["eps"], point[loss]) for point in record["curves"]]
            label = record["method"] if loss == "cross-entropy" else None
            axes.plot(*zip(*points, strict=True), ls=line, marker=".", color=f"C{number}", label=label)
    axes.set_xlabel("ε; solid: PGD on the cross-entropy, dotted: PGD on the logit margin")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8)
    return figure


def _saliency(rows: Sequence[Record]) -> Figure:
    shown = rows[0]["shown"]
    figure = Figure(figsize=(1.3 * (1 + len(rows)), 1.3 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 1 + len(rows))
    for line, image in enumerate(shown):
        pixels = np.array(image, dtype=np.uint8).transpose(1, 2, 0)
        grid[line, 0].imshow(pixels.squeeze(), cmap="gray")
        for column, record in enumerate(rows, start=1):
            grid[line, column].imshow(record["saliency"][line], cmap="magma", vmin=0, vmax=255)
            grid[0, column].set_title(record["method"], fontsize=8)
    for axes in grid.flat:
        axes.axis("off")
    return figure


def defences() -> list[Record]:
    """The records of the defence."""
    return [record for record in records() if "audit" in record]


def by_setting(found: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """Records by data and architecture, in order of first appearance."""
    return _grouped(found, "setting")


def by_method(found: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """Records by method, several seeds together."""
    return _grouped(found, "method")


def _grouped(found: Iterable[Record], key: str) -> list[tuple[str, list[Record]]]:
    groups: dict[str, list[Record]] = {}
    for record in found:
        groups.setdefault(record[key], []).append(record)
    return list(groups.items())


def _verdict(audit: Mapping[str, Any]) -> str:
    places = [f"{one['id']} at {', '.join(one['places'])}" for one in audit["mechanisms"]]
    return audit["label"] + (f": {'; '.join(places)}" if places else "")


def _beside(ours: Sequence[float], theirs: float | None) -> str:
    return _spread([100 * value for value in ours], 1) + ("" if theirs is None else f" ({theirs:.1f})")


def _spread(values: Sequence[float], digits: int) -> str:
    """The mean, with the smallest and the largest of several."""
    if not values:
        return "not run"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.{digits}f} … {max(values):.{digits}f}]"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _rule(columns: int) -> str:
    return "|" + " --- |" * columns + "\n"
