"""From a trace to a plan: which repairs, losses, starts and steps, cheapest and most promising first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from maskaudit.repairs.propose import fallbacks, last_resorts, propose
from maskaudit.settings.plan import Plan, PlanLoss, Repair, Stage, Start
from maskaudit.trace.records import Trace

#: Losses in the order they are tried on the points not broken yet.
LOSSES: tuple[PlanLoss, ...] = ("margin", "rescaled", "targeted-margin")
#: Fixed step, in units of ε, of the stage that does without Auto-PGD's bookkeeping: on hard or clipped scores
#: the loss is flat while the repaired gradient moves on, and Auto-PGD would halve its step away.
FIXED_STEP = 0.1
#: Behind dormant units: full steps from the clean point, which reach a corner of the ball at once, then Auto-PGD.
#: Twice ε crosses the ball. Both together are under 5 % of the passes of a healthy model's audit.
CORNER_STEP, CORNER_STEPS, OPEN_STEPS = 2.0, 2, 25
#: Most rectifiers that are opened, those nearest to the output; a plan file holds more stages than that.
MOST_OPEN = 250
#: Most draws per gradient of a random model.
MOST_DRAWS = 32


def make_plan(trace: Trace, *, steps: int, targets: int, hinted: bool = False, random: bool = False,
              dormant: Sequence[Repair] = ()) -> Plan:  # fmt: skip
    """The plan for a model.

    Args:
        trace: of the model.
        steps: gradient steps per run; targets: wrong classes of the targeted loss.
        hinted: whether a probe found its gradients or its loss wanting.
        random: whether its answers are random.
        dormant: repairs that open units which fire on no audited point (`maskaudit.repairs.propose.openings`).

    A healthy model gets none but the short stages behind dormant units, which healthy networks have as well.
    White-box stages come in pairs, one on cross-entropy and one on another loss from the same starts, so that
    neither family is given more effort than the other.
    """
    repairs = propose(trace)
    own = tuple(_own(steps, random)) if hinted or random or trace.culprits or trace.health.poor else ()
    draws = MOST_DRAWS if random else 0
    output = tuple(repair for repair in repairs if repair.changes_scores)
    return Plan((
        *own, *_repaired(trace, repairs, steps, targets, draws), *_behind_dormant_units(dormant, output, draws)
    ))  # fmt: skip


def _own(steps: int, random: bool) -> Iterator[Stage]:
    draws = MOST_DRAWS if random else 0
    starts: tuple[Start, ...] = ("diversified", "challenger")
    losses: tuple[PlanLoss, ...] = ("ce", "margin-decomposition")
    for start in starts:
        for loss in losses:
            yield Stage((), loss, start, steps, draws=draws)


def _repaired(trace: Trace, repairs: Sequence[Repair], steps: int, targets: int, draws: int) -> Iterator[Stage]:
    sets = repair_sets(repairs, fallbacks(trace))
    resorts = last_resorts(trace)
    if sets:
        yield Stage(sets[0], LOSSES[0], steps=steps, draws=draws)
    if len(repairs) > 1:
        for repair in repairs:
            yield Stage((repair,), LOSSES[0], steps=steps, draws=draws, purpose="confirm")
    for chosen in sets:
        for loss in LOSSES:
            if (chosen, loss) != (sets[0], LOSSES[0]):
                yield Stage(chosen, loss, steps=steps, targets=targets, draws=draws)
    for chosen in sets[:1]:
        yield Stage(chosen, LOSSES[0], "challenger", steps, step=FIXED_STEP, draws=draws)
    output = tuple(repair for repair in repairs if repair.changes_scores)
    for resort in resorts:
        yield Stage((resort, *output), LOSSES[0], steps=steps, draws=draws)
        yield Stage((resort, *output), LOSSES[0], "challenger", steps, step=FIXED_STEP, draws=draws)


def _behind_dormant_units(dormant: Sequence[Repair], output: tuple[Repair, ...], draws: int) -> Iterator[Stage]:
    """All of them open at once; then each place alone, for the case that something was found."""
    if not dormant:
        return
    dormant = dormant[-MOST_OPEN:]
    yield Stage((*dormant, *output), "margin", "clean", CORNER_STEPS, step=CORNER_STEP, draws=draws)
    yield Stage((*dormant, *output), "margin", "clean", OPEN_STEPS, draws=draws)
    if len(dormant) > 1:
        for place in dormant:
            yield Stage((place, *output), "margin", "clean", OPEN_STEPS, draws=draws, purpose="confirm")


def repair_sets(repairs: Sequence[Repair], modules: Sequence[Repair] = ()) -> tuple[tuple[Repair, ...], ...]:
    """All repairs together, then each alone, then whole modules with the output repairs; nothing for nothing."""
    if not repairs:
        return ()
    alone = tuple((repair,) for repair in repairs) if len(repairs) > 1 else ()
    output = tuple(repair for repair in repairs if repair.changes_scores)
    whole = ((*modules, *output),) if modules else ()
    return (tuple(repairs), *alone, *whole)
