"""Probes: those that measure the model run once, at the first look; those that compare attacks at every look."""

from __future__ import annotations

from torch import Tensor

from maskaudit.auditing.engine.interface import Done, EngineError
from maskaudit.auditing.state import AuditState
from maskaudit.probes.interface import AttackOutcome, ProbeContext
from maskaudit.probes.run import ProbeTask, run_probe
from maskaudit.report import words
from maskaudit.results import ProbeResult
from maskaudit.settings import AuditEvent


def run(state: AuditState, rows: Tensor) -> None:
    """Measure the model on the first points of the first look; what is measured is kept, whatever ends the audit."""
    if state.probed:
        return
    state.probed = True
    chosen = rows[: state.settings.effort.probe_points]
    x, y, rng = state.ledger.x[chosen], state.ledger.y[chosen], state.attacker.rng("probes", chosen)
    wanted = state.probes(comparing_attacks=False)
    tasks = {f"probe {probe.rule}": ProbeTask(probe, x, y, state.threat, rng) for probe in wanted}

    def tell(_number: int, done: Done[ProbeResult]) -> None:
        result = done.result
        state.first_probes = [*state.first_probes, result]
        state.tell(AuditEvent(result.rule, len(chosen), True, _outcome(result), result.seconds))

    state.tell(AuditEvent("probes", len(chosen)))
    try:
        state.first_probes = [done.result for done in state.attacker.do(tasks, tell)[0]]
    except EngineError:  # one of them ends its worker: the others are not to blame
        state.first_probes = [_by_itself(state, name, task) for name, task in tasks.items()]


def _by_itself(state: AuditState, name: str, task: ProbeTask) -> ProbeResult:
    try:
        return state.attacker.do({name: task})[0][0].result
    except EngineError as error:
        return task.lost(str(error))


def compare_attacks(state: AuditState, rows: Tensor) -> None:
    """Compare the attacks on all correct points so far, by what is booked; no pass through the model."""
    ledger = state.ledger
    rows = ledger.correct.nonzero().squeeze(1)
    strong, known = ledger.strong()[rows], ledger.best_known()[rows]
    outcomes = {}
    for row in ledger.rows():
        attempted = ledger.entries[row.name].attempted[rows]
        if row.status == "ran" and bool((attempted | (known & (row.role == "challenger"))).all()):
            outcomes[row.name] = AttackOutcome(row, ledger.entries[row.name].broken[rows], attempted)
    context = ProbeContext(
        state.target, ledger.x[rows], ledger.y[rows], state.threat, state.attacker.rng("attack probes", rows),
        outcomes, strong,
    )  # fmt: skip
    state.attack_probes = [run_probe(probe, context) for probe in state.probes(comparing_attacks=True)]


def _outcome(result: ProbeResult) -> str:
    if result.status in ("not_applicable", "error"):
        return f"{result.status.replace('_', ' ')}: {result.reason}"
    shown = words.quantity(result.value, result.unit, words.is_share(result.unit))
    return f"{result.status}: {shown or 'undefined'}"
