"""What an audit is asked to do, and who is told how it goes: the options of every front door, each declared once."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from maskaudit.declared import Anything, Checked, Choice, Either, Flag, Items, Number, Record, Text, Whole, read
from maskaudit.errors import UsageError
from maskaudit.options import check_options, option, options_of
from maskaudit.results import Norm

if TYPE_CHECKING:
    from maskaudit.repairs.plan import Plan

Outputs = Literal["logits", "probabilities"]
BudgetName = Literal["quick", "standard", "thorough"]
FailOn = Literal["masked", "suspect", "inconclusive", "never"]

#: What may fail a build; each takes in those before it, except that `never` takes in nothing.
FAIL_ON: tuple[FailOn, ...] = get_args(FailOn)

#: Most entries of a list, largest magnitude of an input, largest count.
MAX_LIST = 10_000
_LARGEST_INPUT = 1e6
_LARGEST_COUNT = 2**31 - 1
_LARGEST_AMOUNT = 1e15

_WORD = Text(shortest=1)
WORDS = Items(_WORD, MAX_LIST, single=True)
_COUNT = Whole(1, _LARGEST_COUNT)
_SHARE = Number(0, 1, quotient=True)
_INPUT = Number(-_LARGEST_INPUT, _LARGEST_INPUT, quotient=True)
_PLAN = Checked(Anything(), "a Plan", lambda value: hasattr(value, "stages"))
_LENGTH = Number(0, _LARGEST_INPUT, above=True, quotient=True)


@dataclass(frozen=True)
class Budget:
    """How much an audit may spend.

    Attributes:
        points: most points that it draws for the verdict; `claim_points` those that it draws to judge a claim.
        steps: gradient steps of one Auto-PGD run.
        targets: wrong classes tried by the targeted attack.
        queries: forward passes per point of the score-based search.
        decision_queries: of the decision-based attack.
        noise_draws: random-sign draws per point.
        surrogate_rounds: training rounds of the surrogate.
        probe_points: points that probes measure.
        second_opinion: points that torchattacks attacks.
        curve_points: points of the figure of accuracy against ε.
    """

    points: int
    claim_points: int
    steps: int
    targets: int
    queries: int
    decision_queries: int
    noise_draws: int
    surrogate_rounds: int
    probe_points: int
    second_opinion: int
    curve_points: int


#: Points of the first looks: enough to prove that a third is hidden, and to bound the share where nothing is.
FIRST_LOOKS = (32, 56)
#: How much larger each further look is, at least.
LOOK_GROWTH = 1.4


def looks_up_to(most: int) -> tuple[int, ...]:
    """Numbers of points up to `most`, multiples of 8."""
    looks = list(FIRST_LOOKS)
    while LOOK_GROWTH * looks[-1] < most:
        looks.append(8 * math.ceil(LOOK_GROWTH * looks[-1] / 8))
    return (*looks, most)


BUDGETS: dict[str, Budget] = {
    "quick": Budget(
        points=128, claim_points=128, steps=25, targets=2, queries=400, decision_queries=400, noise_draws=100,
        surrogate_rounds=2, probe_points=32, second_opinion=4, curve_points=8,
    ),
    "standard": Budget(
        points=800, claim_points=200, steps=50, targets=4, queries=1500, decision_queries=1000, noise_draws=300,
        surrogate_rounds=2, probe_points=32, second_opinion=8, curve_points=16,
    ),
    "thorough": Budget(
        points=1600, claim_points=400, steps=100, targets=9, queries=5000, decision_queries=4000, noise_draws=1000,
        surrogate_rounds=4, probe_points=64, second_opinion=32, curve_points=32,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Allowance:
    """A limit in the user's unit: seconds, or passes (forwards and backwards, in points); `text` as it was given."""

    text: str
    seconds: float | None = None
    passes: float | None = None


_UNITS = {"s": 1, "m": 60, "h": 3600}
_AMOUNT = re.compile(r"(\d{1,12}(?:\.\d{1,6})?(?:e\d{1,2})?)([smh]?)")


def allowance(budget: str) -> Allowance | None:
    """The limit that a budget such as `90s`, `2m`, `1.5h` or `1e6` names; None for a text that is none."""
    found = _AMOUNT.fullmatch(budget.strip())
    amount = float(found[1]) if found else 0.0
    if not found or not 0 < amount <= _LARGEST_AMOUNT:
        return None
    unit = _UNITS.get(found[2])
    return Allowance(budget, passes=amount) if unit is None else Allowance(budget, seconds=unit * amount)


_BUDGET = Checked(
    _WORD, f"one of {', '.join(BUDGETS)}, a time such as 90s or 2m, or a number of passes such as 1e6",
    lambda budget: budget in BUDGETS or allowance(budget) is not None,
)  # fmt: skip


@dataclass(frozen=True)
class AuditSettings:
    """Settings of one audit; see the options for what each means.

    Attributes:
        plan: the stages of the adaptive attack; None leaves them to trace and probes.
        arch: SPEC of the module that the user gave for a state dict, for the report.
        defaults: names of settings the user did not choose, for the report.
        command: the command line that asked for the audit, for the report.

    Raises:
        UsageError: for a value that is not what its option takes.
    """

    budget: str = option(
        "standard", _BUDGET, "Effort (quick, standard, thorough), or the most to spend: a time (2m) or passes (1e6).",
        metavar="EFFORT|TIME|PASSES", resumes=True,
    )  # fmt: skip
    samples: int | Literal["all"] | None = option(
        None, Either(_COUNT, Choice("all")), "Points to draw, or all; as many as the verdict needs if left out.",
        metavar="N", resumes=True,
    )  # fmt: skip
    precision: float | None = option(
        None, Number(0, 0.5, above=True, quotient=True),
        "Draw points until the best-known accuracy is known to this much either way.", metavar="HALF-WIDTH",
        resumes=True,
    )  # fmt: skip
    seed: int = option(0, Whole(0, 2**63 - 1), "Seed of everything random.", metavar="N", resumes=True)
    claim: float | None = option(
        None, _SHARE, "Robust accuracy that is claimed, e.g. 0.53.", metavar="FRACTION", one_model=True
    )
    outputs: Outputs | Literal["auto"] = option(
        "auto", Choice(*get_args(Outputs), "auto"),
        "What the model returns; auto looks at its answers to clean inputs.", group="data", resumes=True,
    )  # fmt: skip
    mean: tuple[float, ...] | None = option(
        None, Items(_INPUT, MAX_LIST, 1), "Normalisation mean per channel, if it is not part of the model.",
        metavar="NUMBERS", group="data", resumes=True,
    )  # fmt: skip
    std: tuple[float, ...] | None = option(
        None, Items(_LENGTH, MAX_LIST, 1), "Normalisation deviation per channel.", metavar="NUMBERS", group="data",
        resumes=True,
    )  # fmt: skip
    reject_class: int | None = option(
        None, Whole(0, _LARGEST_COUNT), "Output that means “refused to answer”, if there is one.", metavar="K",
        group="data", resumes=True,
    )  # fmt: skip
    device: str = option(
        "cpu", _WORD, "Where the model runs: cpu, cuda, cuda:1, …", metavar="DEVICE", group="model", resumes=True
    )
    batch_size: int | None = option(
        None, _COUNT, "Most points per pass through the model; by default 256, fewer for large inputs.", metavar="N",
        resumes=True,
    )  # fmt: skip
    call_timeout: float | None = option(
        None,
        Number(0, _LARGEST_COUNT, quotient=True),
        "Longest time for one pass (300, or 20 times the longest before it; 0: any time), where the command line "
        "supervises it.",
        metavar="SECONDS",
    )
    workers: int | None = option(
        None, _COUNT, "Processes that share the attacks; results do not depend on N.", metavar="N"
    )
    ray: str = option("", _WORD, "Ray cluster that runs the attacks, e.g. auto or ray://head:10001.", metavar="ADDRESS")
    select: tuple[str, ...] = option(
        (), WORDS, "Run only these probes and attacks; the reference attack always runs.", metavar="RULE"
    )
    ignore: tuple[str, ...] = option((), WORDS, "Leave these probes and attacks out.", metavar="RULE")
    attacks: tuple[str, ...] = option((), WORDS, "Add an attack: torchattacks:NAME.", metavar="NAME", flag="--attack")
    certified: float | None = option(
        None, _SHARE, "Certified lower bound of robust accuracy, if one is known.", metavar="FRACTION", one_model=True
    )
    fail_on: FailOn = option("masked", Choice(*FAIL_ON), "The mildest verdict that ends with status 1.")
    plan: Plan | None = None
    arch: str = ""
    defaults: tuple[str, ...] = ()
    command: str = ""

    def __post_init__(self) -> None:
        check_options(self)
        if self.workers is not None and self.ray:
            raise UsageError("Give either --workers or --ray, not both.")

    @property
    def effort(self) -> Budget:
        """The figures behind the budget's name; those of the standard one for a budget in time or passes."""
        return BUDGETS.get(self.budget, BUDGETS["standard"])

    def looks(self, available: int) -> tuple[int, ...]:
        """Numbers of points at which the verdict is looked at, given how many the data set has.

        Each is larger than the one before by a constant factor, so that no audit draws many more points than its
        verdict needs; the test of the verdict holds at all looks at once, however many.
        """
        most = available if self.samples == "all" else min(available, self.samples or self.effort.points)
        return (*(n for n in looks_up_to(most) if n < most), most)


@dataclass(frozen=True)
class Request:
    """What the user asked for; None means "not given", and a default is looked for.

    The defaults come from the model file first (data, threat model, normalisation, as our own
    trainer writes them), then from custom: digits as data, Linf, and the ε usual for such data.
    All front doors end here: `check`, each model of the gate, `maskaudit.audit`, and the pytest fixture.

    Attributes:
        model: a source as for `maskaudit check`, or what a model in memory is called.
        settings: everything that does not lead to model, data or threat model.
    """

    model: str
    arch: str | None = option(
        None, _WORD, "Module of a state dict: net.py:factory or pkg.mod:factory.", metavar="SPEC", group="model",
        path="source",
    )  # fmt: skip
    data: str | None = option(
        None, _WORD, "digits, fashion-mnist, x.npz, a folder of class folders, torchvision:NAME, hf:ID or py:CODE.",
        metavar="SOURCE", group="data", path="source",
    )  # fmt: skip
    norm: Norm | None = option(None, Choice(*get_args(Norm)), "Norm of the ball.", group="data")
    eps: float | None = option(
        None, _LENGTH, "Radius of the ball in input units, e.g. 8/255.", metavar="NUMBER", group="data"
    )
    bounds: tuple[float, float] | None = option(
        None, Checked(Items(_INPUT, 2, 2), "two numbers, smallest first, such as 0,1", lambda b: b[0] < b[1]),
        "Smallest and largest input value.", metavar="LOW,HIGH", group="data",
    )  # fmt: skip
    trust_pickle: bool = option(
        False, Flag(), "Allow a pickled module to execute its code.", group="model", one_model=True, trusts=True
    )
    surrogates: tuple[str, ...] = option(
        (), WORDS, "Another model to transfer attacks from.", metavar="MODEL[@SPEC]", flag="--surrogate",
        path="surrogate",
    )  # fmt: skip
    plan: str | Plan | None = option(
        None, Either(_WORD, _PLAN), "Stages of the adaptive attack, as plan.json of --out has them.", metavar="FILE",
        path="file",
    )  # fmt: skip
    settings: AuditSettings = field(default_factory=AuditSettings)

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def of(
        cls, model: str, values: Mapping[str, Any], settings: AuditSettings | None = None, *, where: str = "the options"
    ) -> Request:
        """The request for a model with options by their keys; None means "not given".

        Args:
            model: see `Request.model`.
            values: values by key of `OPTIONS`.
            settings: the settings that `values` do not name.
            where: where they come from, for the message about an unknown key.

        Raises:
            UsageError: for an unknown key, or a value that is not what its option takes.
        """
        given = {key: value for key, value in values.items() if value is not None}
        read(Record(dict.fromkeys(OPTIONS, Anything())), given, where, error=UsageError)
        own = {key: given.pop(key) for key in options_of(cls) if key in given}
        return cls(model, **own, settings=dataclasses.replace(settings or AuditSettings(), **given))


#: Every option of an audit by its key.
OPTIONS = {**options_of(Request), **options_of(AuditSettings)}


def fails(label: str, claim: str, fail_on: str) -> bool:
    """Whether a verdict's label and a claim's status are what `fail_on` forbids; a refuted claim always is."""
    forbidden = FAIL_ON[: FAIL_ON.index(fail_on) + 1]
    return fail_on != "never" and (label in forbidden or claim == "refuted")


@dataclass(frozen=True)
class AuditEvent:
    """One step of an audit: what, how many points, whether it is done, and how it ended.

    `total` above 0 announces that many steps to come, so that a listener can estimate the time left.
    """

    step: str
    points: int = 0
    finished: bool = False
    outcome: str = ""
    seconds: float = 0.0
    total: int = 0


Listener = Callable[[AuditEvent], None]


def ignore_events(event: AuditEvent) -> None:
    """The listener for callers who want silence."""
