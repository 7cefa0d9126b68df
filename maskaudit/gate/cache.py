"""Finished audits of a gate in a folder, so that a model that has not changed is not audited again.

An audit is found again under a digest of all that its report depends on: the model's bytes, the points, the settings,
the surrogates, the plan, this program, the packages that it uses and what torch uses of the processor. The folder is
the user's own and is believed as the configuration is; what lies in it is read as any other report.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import distributions, entry_points
from pathlib import Path

from maskaudit import api
from maskaudit.auditing.digest import IndescribableError, content_digest
from maskaudit.auditing.evidence_file import MAX_BYTES as MAX_EVIDENCE
from maskaudit.auditing.runner import Audit
from maskaudit.errors import InputError, MaskauditError
from maskaudit.files import read_bounded, write_atomically
from maskaudit.foreign import PLUGIN_GROUPS, READER_GROUP
from maskaudit.report.reading import read_report
from maskaudit.results import AuditReport, revived

#: Packages of others, besides torch, that reports depend on: arithmetic, conversion, a second opinion.
PACKAGES = frozenset({"numpy", "onnx", "onnxruntime", "scipy", "torchattacks"})


class Cache:
    """One folder of finished audits.

    Raises:
        InputError: when the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"The cache {folder} cannot be written: {error.strerror or error}.") from error

    def audit(self, prepared: api.Prepared, run: Callable[[], Audit]) -> Audit:
        """What is kept of this audit, else what `run` finds, which is kept if it was finished."""
        key = digest_of(prepared)
        if key is None:
            return run()
        with contextlib.suppress(MaskauditError, TypeError):  # damaged, or of another version: audited anew
            if (kept := self._read(key)) is not None:
                return kept
        found = run()
        if found.failure is None and found.interrupted is None and found.report.partial is None:
            self._write(key, found)
        return found

    def _read(self, key: str) -> Audit | None:
        place, beside = self._places(key)
        if not place.is_file():
            return None
        document = read_report(place)
        evidence = read_bounded(beside, MAX_EVIDENCE, f"The evidence {beside}")
        if hashlib.sha256(evidence).hexdigest() != document["evidence"].get("sha256"):
            return None
        return Audit(revived(AuditReport, document), evidence, cached=True)

    def _write(self, key: str, audit: Audit) -> None:
        """A disk that is full costs the next audit time, never this one its result."""
        place, beside = self._places(key)
        with contextlib.suppress(OSError):
            write_atomically(beside, audit.evidence)
            write_atomically(place, audit.report.to_json().encode())

    def _places(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.json", self.folder / f"{key}.safetensors"


def digest_of(prepared: api.Prepared) -> str | None:
    """What an audit's report depends on; None where that is not known: for code of the user's, and for services."""
    loaded = prepared.loaded
    code = loaded.trusted_code or any("@" in name for name in prepared.surrogate_names)
    plugins = any(entry_points(group=group) for group in (*PLUGIN_GROUPS, READER_GROUP))
    if code or plugins or not loaded.sha256 or loaded.format == "python":
        return None
    settings = replace(prepared.settings, command="", workers=None, ray="")
    versions = {(name, found.version) for found in distributions() if (name := str(found.name).lower()) in PACKAGES}
    try:
        return content_digest(loaded.source, loaded.metadata, api.fingerprint(prepared), settings, versions)
    except IndescribableError:
        return None
