"""The report names the evidence that was written, and no other."""

from __future__ import annotations

from maskaudit.command.results_out import Asked, naming_its_evidence
from maskaudit.report import text
from maskaudit.results import EVIDENCE_FILE

from ..report import sample


def asked(*wanted: tuple[str, str]) -> Asked:
    return Asked("net.pt", wanted, False, "masked", None)


def test_the_evidence_is_named_as_it_is_written_beside_the_report() -> None:
    document = sample.masked().to_dict()
    for wanted, name in (
        ([], EVIDENCE_FILE),
        ([("json", "out/a.json")], EVIDENCE_FILE),
        ([("evidence", "out/proof.safetensors")], "proof.safetensors"),
        ([("json", "out/a.json"), ("evidence", "x/1"), ("evidence", "out/2"), ("evidence", "y/3")], "2"),
    ):
        named = naming_its_evidence(document, asked(*wanted))
        assert named["evidence"] == {**document["evidence"], "file": name}
    assert naming_its_evidence({**document, "evidence": {}}, asked(("evidence", "a")))["evidence"] == {}


def test_the_terminal_sends_nobody_to_a_file_that_was_not_written() -> None:
    document = sample.masked().to_dict()
    kept, lost = text.render(document, file="out/a.json"), text.render(document, file=None)
    assert f"examples in {EVIDENCE_FILE}" in kept
    assert "maskaudit verify out/a.json" in kept
    assert EVIDENCE_FILE not in lost
    assert "maskaudit verify" not in lost
    assert "--out DIR keeps the examples" in lost
