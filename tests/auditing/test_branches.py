"""`--branch` in an audit and an inspection: an honest network, one hidden by a branch, one with a branch of steps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from maskaudit import api
from maskaudit.auditing.branches import added, sentence, try_branch
from maskaudit.auditing.phases import branches as phase
from maskaudit.cli import cli
from maskaudit.data import load_data
from maskaudit.errors import UsageError
from maskaudit.report import render
from maskaudit.report.reading import parse_report
from maskaudit.results import BranchRow
from maskaudit.settings import AuditSettings

from ..probes.toys import context
from .branch_models import Drowning, Inception, trained

LEFT_OUT = ("transfer", "decision", "square", "finite-differences", "noise", "torchattacks-pgd", "torchattacks-square")


@pytest.fixture(scope="module")
def honest() -> nn.Module:
    return trained(Inception())


def tried(model: nn.Module, branch: str, n: int = 32) -> BranchRow:
    data = load_data("digits")
    with context(model, data.x[:n]) as ctx:
        row, found = try_branch(ctx.target, ctx.x, ctx.y, branch, threat=ctx.threat, rng=ctx.rng, steps=20)
        assert [int(one.score.broken.sum()) for one in found] == [row.alone, row.masked]
    assert row.points == n
    return row


def test_no_branch_of_an_honest_network_hides_anything(honest: nn.Module) -> None:
    for branch in ("b1", "b3_2", "b5", "pool"):
        row = tried(honest, branch)
        assert 0 < row.alone <= row.whole + 1
        assert row.hides <= 1
        assert row.no_gradient == 0
        assert row.without_correct > 20
        assert row.without_fooled > 0
        assert "hides the way" not in sentence(row)


def test_a_branch_whose_gradient_drowns_the_others_is_found(honest: nn.Module) -> None:
    row = tried(Drowning(honest), "ripple")
    assert row.masked > row.whole + 8
    assert row.hides > 8
    assert row.without_correct == 32
    assert "the branch hides the way" in sentence(row)
    other = tried(Drowning(honest), "honest")
    assert other.hidden > 8
    assert "the rest of the network hides the way" in sentence(other)


def test_a_branch_without_a_gradient_is_told() -> None:
    row = tried(trained(Inception(torch.round), 80), "b5")
    assert (row.no_gradient, row.alone) == (32, 0)
    assert "No gradient at all comes through it." in sentence(row)


def test_figures_of_several_looks_add_up() -> None:
    first = BranchRow("b", 10, 1, 2, 3, 4, 5, 6, 7, 8)
    assert added(first, first) == BranchRow("b", 20, 2, 4, 6, 8, 10, 12, 14, 16)


def audited(model: nn.Module, **settings: Any) -> dict[str, Any]:
    chosen = AuditSettings(**{"budget": "quick", "samples": 32, "ignore": LEFT_OUT, **settings})
    return api.audit(model, eps=0.1, settings=chosen).report.to_dict()


@pytest.mark.heavy
def test_an_audit_books_what_breaks_the_whole_network_and_reports_every_branch(honest: nn.Module) -> None:
    document = audited(Drowning(honest), branches=("ripple", "ripple"))
    (row,) = document["branches"]
    rows = {attack["name"]: attack for attack in document["attacks"]}
    assert (row["branch"], row["masked"]) == ("ripple", rows["branch-masked:ripple"]["broken"])
    assert rows["branch-alone:ripple"]["role"] == "repaired"
    assert row["hides"] > 8
    assert document["verdict"]["label"] == "masked"
    assert any("Branch ripple: what it alone sees" in note for note in document["notes"])
    again = parse_report(json.dumps(document), "it")
    page = render(again, "html")
    section = page.partition('id="branches"')[2].partition("</section>")[0]
    assert f'<td class="num">{row["masked"]}</td>' in section
    assert "Branch ripple" in render(again, "text")


def test_without_the_option_nothing_is_searched(honest: nn.Module) -> None:
    document = audited(honest, select=("pgd",))
    assert document["branches"] == []
    assert 'id="branches"' not in render(document, "html")
    assert document["trace"]["forks"][0]["branches"] == ["b1", "b3_2", "b5", "pool"]


def test_names_that_are_no_branch_end_the_audit_before_it_starts(honest: nn.Module) -> None:
    with pytest.raises(UsageError, match="no module 'b7'"):
        audited(honest, branches=("b7",))
    with pytest.raises(UsageError, match="black box"):
        audited(honest, branches=("b1",), black_box=True)


def test_branches_of_a_random_model_are_not_searched_and_that_is_said_once() -> None:
    state: Any = SimpleNamespace(
        settings=AuditSettings(branches=("b1", "b5")), target=SimpleNamespace(random=True), notes=[], branches={}
    )
    for _ in range(2):
        phase.run(state, torch.arange(4))
    assert state.branches == {}
    assert len(state.notes) == 1
    assert "branches were not searched" in state.notes[0]


@pytest.mark.heavy
def test_inspect_lists_the_branches_and_searches_only_those_named(tmp_path: Path, zoo_cache: Path) -> None:
    listed = CliRunner().invoke(cli, ["inspect", "zoo:resnet"])
    assert listed.exit_code == 0, listed.output
    assert "Branches, for --branch:" in listed.output
    name = listed.output.partition("Branches, for --branch:\n")[2].splitlines()[0].split(": ")[1].split(" and ")[0]
    result = CliRunner().invoke(cli, ["inspect", "zoo:resnet", "--branch", name.split(", ")[0], "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["branches"]
    assert row["points"] > 8
    assert row["sentence"].startswith(f"Branch {row['branch']}: ")
