"""Verification of an audit: examples and clean points are scored anew on the model, the rest follows from the points.

`verify_audit` gives one check for each thing that can be held against the model or against the recorded points;
`conclusion` says in one sentence what holds, what does not, and what no file can show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskaudit import __version__
from maskaudit.auditing.evidence_file import THREAT, Evidence, pack_evidence, read_evidence, report_digest
from maskaudit.auditing.verification import Hearing
from maskaudit.errors import InputError
from maskaudit.report.reading import read_report
from maskaudit.results import AttackRow, plain, revived
from maskaudit.target import Target, usual_batch
from maskaudit.target.form import Form
from maskaudit.threat import ThreatModel
from maskaudit.verdict.recorded import Families
from maskaudit.verdict.recount import Check, recount

#: What the report and the scoring of its evidence must agree on besides the threat model: section and field of each.
_SHARED = {
    "sha256": ("target", "sha256"), "random": ("target", "random"), "reject_class": ("target", "reject_class"),
    "outputs": ("target", "outputs"), "mean": ("settings", "mean"), "std": ("settings", "std"),
}  # fmt: skip

#: What is said of a model in code, a session or a service.
NO_DIGEST = "it has no digest, so that nobody can tell whether it is the audited one"


def verify_audit(document: dict[str, Any] | None, evidence: Evidence, model: Any, model_sha256: str) -> list[Check]:
    """Score every point and example anew, and judge the recorded points anew.

    Args:
        document: the report, or None to check the evidence alone; evidence: its evidence file.
        model: the reviewer's copy of the model; `model_sha256`: its digest.

    Raises:
        InputError: when report and model do not fit together, or a section of the report is damaged.
    """
    scoring = evidence.metadata
    counted = [] if document is None else recount(document)
    checks = [] if document is None else _check_report(document, evidence)
    checks.append(_check_model(scoring.get("sha256"), model_sha256))
    threat = ThreatModel.from_dict(scoring["threat"])
    if threat.features is not None and evidence.tensors["clean"].shape[1:] != (len(threat.features.low),):
        raise InputError("The evidence describes features that its inputs do not have.")
    batch_size = usual_batch(evidence.tensors["clean"].shape[1:])
    if document is not None:
        batch_size = min(batch_size, document["settings"].get("batch_size") or batch_size)
    with _reviewed(model, scoring, threat, batch_size) as target:
        hearing = Hearing(target, threat, random=scoring.get("random", False), reject_class=scoring.get("reject_class"))
        heard, proven = _heard(hearing, evidence, document)
    checks += heard
    return checks if document is None else [*checks, _check_points(document, evidence, proven), *counted]


def _check_model(audited: object, given: str) -> Check:
    """Whether the model is the audited one, by its digest; a function, a session or a service has none."""
    if not audited:
        return Check("model", True, NO_DIGEST)
    same = audited == given
    return Check("model", same, "same bytes as audited" if same else "not the bytes audited")


def conclusion(checks: Sequence[Check], document: Mapping[str, Any] | None, *, published: bool = False) -> str:
    """What the checks come to, in one sentence, with what cannot be known from the files.

    Args:
        checks: the outcome of `verify_audit`, and of further checks.
        document: the report, if there is one.
        published: whether a digest from elsewhere was given and is among the checks.
    """
    failed = [check.name for check in checks if not check.holds]
    unknown = (
        "which attack found an example, that every attack ran as listed, in a ball of this size, and found no more, "
        "that the probes and the trace measured what they say, that settings, notes and figures are true"
    )
    if any(check.detail == NO_DIGEST for check in checks):
        unknown = f"that this is the model that was audited, {unknown}"
    origin = "" if published else " and that no one has replaced report and evidence together (--sha256)"
    if document is None:
        unknown, origin = "what the report says of them", ""
    else:
        data = (document["settings"].get("data") or "the data").replace("in memory", "those in memory")
        unknown += f", that the points are a fair draw from {data}{origin}"
    if failed:
        held = [check.name for check in checks if check.holds]
        kept = f"; what holds: {', '.join(held)}" if held else ""
        return f"Not proven: what does not hold: {', '.join(failed)}{kept}; what these files cannot show: {unknown}."
    proof = "every example breaks this model"
    if document is not None:
        proof += f", and accuracy, levels, claim and the verdict {document['verdict']['label']} follow from the points"
    return f"Everything that can be checked holds: {proof}; what these files cannot show: {unknown}."


def _reviewed(model: Any, scoring: Mapping[str, Any], threat: ThreatModel, batch_size: int) -> Target:
    """The reviewer's copy of the model, set up as it was for the audit."""
    cuda = scoring.get("device", "").startswith("cuda") and torch.cuda.is_available()
    return Target(
        model,
        bounds=threat.bounds,
        form=Form.from_dict(scoring.get("form", {})).changed(features=threat.features),
        mean=scoring.get("mean"),
        std=scoring.get("std"),
        device="cuda" if cuda else "cpu",
        batch_size=batch_size,
        seed=scoring.get("seed", 0),
    )


def _heard(
    hearing: Hearing, evidence: Evidence, document: Mapping[str, Any] | None
) -> tuple[list[Check], dict[int, set[str]]]:
    """The checks that ask the model, and per index of a point the attacks whose examples hold."""
    tensors, names = evidence.tensors, evidence.metadata["attacks"]
    clean, label, examples = tensors["clean"].float(), tensors["label"], tensors["examples"].float()
    point = tensors["example_point"]
    n = len(point)
    right, clean_check = _clean(hearing, evidence, document)
    inside = hearing.threat.admissible(examples, clean[point])
    extent = f"{int(inside.sum())} of {n} examples are admissible"
    if n:
        farthest = float(hearing.threat.distance(examples, clean[point]).max())
        extent += f"; the farthest lies at {farthest:.3g}, the radius is {hearing.threat.eps:.3g}"
    rows = hearing.known(clean, label, right[: len(clean)])[point].nonzero().squeeze(1)
    broken, margin = hearing.broken(examples[rows], clean[point[rows]], label[point[rows]])
    held = torch.zeros(n, dtype=torch.bool)
    held[rows] = broken
    detail = f"{int(held.sum())} of {n} examples break their point{hearing.manner}"
    if margin is not None and bool(broken.any()):
        detail += f"; smallest margin {float(margin[broken].min()):.3g}"
    proven: dict[int, set[str]] = {}
    for row in held.nonzero().squeeze(1).tolist():
        index = int(tensors["index"][point[row]])
        proven.setdefault(index, set()).add(names[int(tensors["example_attack"][row])])
    return [
        clean_check,
        Check("ball and bounds", bool(inside.all()), extent),
        Check("misclassified", bool(held.all()), detail),
    ], proven


def _clean(hearing: Hearing, evidence: Evidence, document: Mapping[str, Any] | None) -> tuple[Tensor, Check]:
    """Which clean points the model answers rightly, bool (P + Q,), and whether the report says the same of each."""
    tensors = evidence.tensors
    x = torch.cat([tensors["clean"].float(), tensors["rest"].float()])
    y = torch.cat([tensors["label"], tensors["rest_label"]])
    index = torch.cat([tensors["index"], tensors["rest_index"]]).tolist()
    broken = len(tensors["clean"])
    stated = torch.ones(len(x), dtype=torch.bool)
    listed = torch.ones(len(x), dtype=torch.bool)
    if document is not None:
        points = document["points"]
        known = dict(zip(points["index"], zip(points["label"], points["correct"], strict=True), strict=True))
        listed = torch.tensor([known.get(i, (None, False))[0] == int(label) for i, label in zip(index, y, strict=True)])
        stated = torch.tensor([bool(known.get(i, (None, False))[1]) for i in index])
        listed, stated = listed.bool(), stated.bool()
    elif len(x) > broken:
        x, y, stated, listed = x[:broken], y[:broken], stated[:broken], listed[:broken]
    right = hearing.right(x, y, stated)
    if document is None and hearing.random:
        stated = right  # what else it answered is not in the evidence, and these it may answer wrongly now and then
    agrees = hearing.agree(stated, right) & listed
    agrees[:broken] &= stated[:broken] | hearing.random
    n = len(agrees)
    detail = f"{int(agrees.sum())} of {n} drawn points are answered as recorded{hearing.draws}"
    if document is not None and n < len(document["points"]["index"]):
        detail += f"; the evidence lacks the other {len(document['points']['index']) - n}"
    return right, Check("clean points", bool(agrees.all()), detail)


def _check_report(document: dict[str, Any], evidence: Evidence) -> list[Check]:
    """Whether report and evidence are the pair that the audit wrote."""
    scoring = evidence.metadata
    declared = document["evidence"] if isinstance(document.get("evidence"), dict) else {}
    reported = document["threat"] if isinstance(document.get("threat"), dict) else {}
    same = all(reported.get(name) == plain(scoring["threat"].get(name)) for name in THREAT.fields)
    differing = [
        name for name, (section, field) in _SHARED.items()
        if name in scoring and plain(scoring[name]) != (document.get(section) or {}).get(field)
    ]  # fmt: skip
    paired = scoring.get("report_sha256") == report_digest(document)
    named = declared.get("sha256") == evidence.sha256
    version = (document.get("tool") or {}).get("version")
    other = "" if version == __version__ else f" (it was written by maskaudit {version}, this is {__version__})"
    return [
        Check("report", paired, ("the one that the evidence belongs to" if paired else "altered since") + other),
        Check("evidence", named, "the file that the report names" if named else "not the file that the report names"),
        Check("threat", same, "same in report and evidence" if same else "report and evidence differ"),
        Check(
            "scoring", not differing,
            f"report and evidence differ in {', '.join(differing)}" if differing else "same in report and evidence",
        ),
    ]  # fmt: skip


def _check_points(document: Mapping[str, Any], evidence: Evidence, proven: Mapping[int, Collection[str]]) -> Check:
    """Every point that the report calls broken has an example that holds of each family that broke it, and no other."""
    points = document["points"]
    families = Families.of(revived(tuple[AttackRow, ...], document["attacks"]))
    claimed = {int(i): set(by) for i, by in zip(points["index"], points["broken_by"], strict=True) if by}
    needed = [getattr(families, field.name) for field in dataclasses.fields(families)]
    bare = [
        index for index, by in claimed.items()
        if any(by & family and not set(proven.get(index, ())) & family for family in needed)
    ]  # fmt: skip
    tensors, names = evidence.tensors, evidence.metadata["attacks"]
    pairs = zip(tensors["example_point"].tolist(), tensors["example_attack"].tolist(), strict=True)
    given = {(int(tensors["index"][point]), names[attack]) for point, attack in pairs}
    uncounted = {index for index, name in given if name not in claimed.get(index, ())}
    detail = f"{len(claimed) - len(bare)} of {len(claimed)} broken points are proven"
    if uncounted:
        detail += f"; the report leaves out examples of {len(uncounted)} points"
    return Check("points", not bare and not uncounted, detail)


__all__ = [
    "Check", "Evidence", "conclusion", "pack_evidence", "read_evidence", "read_report", "report_digest", "verify_audit",
]  # fmt: skip
