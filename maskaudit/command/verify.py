"""What `maskaudit verify` does: read the files of an audit and hold them against a model and against each other."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from maskaudit.auditing.evidence import Check, conclusion, read_evidence, verify_audit
from maskaudit.auditing.evidence_file import MAX_BYTES as MAX_EVIDENCE
from maskaudit.declared.kinds import shown
from maskaudit.errors import InputError, UsageError
from maskaudit.files import is_folder, read_bounded
from maskaudit.loading.blackbox import boxed
from maskaudit.report.reading import MAX_BYTES, parse_report
from maskaudit.results import EVIDENCE_FILE
from maskaudit.sources import load_model


def verify_files(
    audit: Path, model: str, *, arch: str | None = None, trust_pickle: bool = False, device: str = "cpu",
    black_box: bool = False, sha256: str | None = None, weights: str | None = None,
) -> tuple[list[Check], str]:  # fmt: skip
    """Check a written audit (folder, audit.json, or the evidence file alone) against a model.

    Args:
        arch, trust_pickle, device, weights: as for `maskaudit.sources.load_model`.
        sha256: digest of audit.json (of the evidence file where that is given alone) that was published elsewhere.

    Returns:
        The checks, and one sentence on what holds, what does not, and what cannot be known.

    Raises:
        InputError: when report or evidence are missing or damaged, or the audit kept no evidence.
        UsageError: when `sha256` is no digest.
    """
    published = None if sha256 is None else _digest(sha256)
    path, document, content = audit / "audit.json" if is_folder(audit) else audit, None, b""
    alone = path.suffix == Path(EVIDENCE_FILE).suffix
    if not alone:
        where = f"The report {path}"
        content = read_bounded(path, MAX_BYTES, where)
        document = parse_report(content, where)
    if document is not None and not document["evidence"] and document.get("partial"):
        raise InputError(f"{where} is that of an audit that ended before it wrote its evidence: run the audit again.")
    beside = path if document is None else path.parent / Path(document["evidence"].get("file") or EVIDENCE_FILE).name
    hint = "; it is written with --out DIR or -o evidence=FILE, and belongs next to the report"
    evidence = read_bounded(beside, MAX_EVIDENCE, f"The evidence {beside}", hint=hint)
    loaded = load_model(model, arch=arch, trust_pickle=trust_pickle, device=device, weights=weights)
    asked_only = black_box or bool(document and document["settings"].get("black_box"))
    classes = (document["target"].get("classes") or 0) if document else 0
    module = boxed(loaded.module, classes=classes) if asked_only else loaded.module
    checks = verify_audit(document, read_evidence(evidence, str(beside)), module, loaded.sha256)
    if published is not None:
        checks.insert(0, _published(evidence if alone else content, published))
    return checks, conclusion(checks, document, published=published is not None)


def _digest(given: str) -> str:
    digest = given.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UsageError(f"--sha256 takes 64 hexadecimal digits, as sha256sum prints them; got {shown(given)}.")
    return digest


def _published(content: bytes, published: str) -> Check:
    found = hashlib.sha256(content).hexdigest()
    detail = "the file has the digest that was given" if found == published else f"the file has the digest {found}"
    return Check("published digest", found == published, detail)
