"""What an audit is asked to do: the options of every front door, each declared once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from maskaudit.declared import Anything, Checked, Choice, Either, Flag, Items, Number, Record, Size, Text, Whole, read
from maskaudit.declared.options import check_options, option, options_of
from maskaudit.errors import UsageError
from maskaudit.results import Norm
from maskaudit.settings.budget import BUDGETS, Budget, allowance, looks_up_to
from maskaudit.settings.kinds import (
    BUILT_IN_DATA,
    COUNT,
    INPUT,
    LARGEST_COUNT,
    LENGTH,
    MAX_LIST,
    PLAN,
    SHARE,
    WORD,
    WORDS,
)
from maskaudit.settings.plan import Plan

Outputs = Literal["logits", "log-probabilities", "probabilities", "votes", "sigmoids", "one-logit", "one-probability"]
Layout = Literal["auto", "as-is", "channels-last", "no-channel", "one-channel", "flat", "square", "row", "column"]
FailOn = Literal["masked", "suspect", "inconclusive", "never"]

#: What may fail a build; each takes in those before it, except that `never` takes in nothing.
FAIL_ON: tuple[FailOn, ...] = get_args(FailOn)
#: Queries that a black box must allow per point before another point is drawn, those that go before the attacks per
#: point, and parts that the rest is split into: three attacks, and what re-scoring and near misses take.
QUERIES_PER_POINT, QUERIES_TO_BEGIN, QUERY_SHARES = 100, 12, 5

BUDGET = Checked(
    WORD, f"one of {', '.join(BUDGETS)}, a time such as 90s or 2m, or a number of passes such as 1e6",
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
        "standard", BUDGET, "Effort (quick, standard, thorough), or the most to spend: a time (2m) or passes (1e6).",
        metavar="EFFORT|TIME|PASSES", resumes=True,
    )  # fmt: skip
    samples: int | Literal["all"] | None = option(
        None, Either(COUNT, Choice("all")), "Points to draw, or all; as many as the verdict needs if left out.",
        metavar="N", resumes=True,
    )  # fmt: skip
    stratify: bool = option(
        False,
        Flag(),
        "Draw points so that every class has its share of any number of them.",
        group="data",
        resumes=True,
    )
    precision: float | None = option(
        None, Number(0, 0.5, above=True, quotient=True),
        "Draw points until the best-known accuracy is known to this much either way.", metavar="HALF-WIDTH",
        resumes=True,
    )  # fmt: skip
    seed: int = option(0, Whole(0, 2**63 - 1), "Seed of everything random.", metavar="N", resumes=True)
    claim: float | None = option(
        None, SHARE, "Robust accuracy that is claimed, e.g. 0.53.", metavar="FRACTION", one_model=True
    )
    outputs: Outputs | Literal["auto"] = option(
        "auto", Choice(*get_args(Outputs), "auto"),
        "What the model returns; auto looks at its answers to clean inputs.", group="data", resumes=True,
    )  # fmt: skip
    threshold: float | None = option(
        None, INPUT, "Answer above which a model with a single output says class 1: 0 for a logit, half of the whole "
        "for a probability.", metavar="NUMBER", group="data", resumes=True,
    )  # fmt: skip
    output_key: str = option(
        "", Text(200), "Which of several outputs holds the class scores: its name, or its number from 0.",
        metavar="KEY", group="data", resumes=True,
    )  # fmt: skip
    layout: Layout = option(
        "auto", Choice(*get_args(Layout)),
        "Axes of an input as the model takes them; auto leaves them where the model answers, else tries.",
        group="data", resumes=True,
    )  # fmt: skip
    swap_channels: bool = option(
        False, Flag(), "The model takes the channels in the reverse order (BGR for RGB).", group="data", resumes=True
    )
    first_label: int = option(
        0, Whole(-LARGEST_COUNT, LARGEST_COUNT), "Number that the data give to the model's first class.", metavar="N",
        group="data", resumes=True,
    )  # fmt: skip
    mean: tuple[float, ...] | None = option(
        None, Items(INPUT, MAX_LIST, 1), "Normalisation mean per channel, if it is not part of the model.",
        metavar="NUMBERS", group="data", resumes=True,
    )  # fmt: skip
    std: tuple[float, ...] | None = option(
        None, Items(LENGTH, MAX_LIST, 1), "Normalisation deviation per channel.", metavar="NUMBERS", group="data",
        resumes=True,
    )  # fmt: skip
    reject_class: int | None = option(
        None, Whole(0, LARGEST_COUNT), "Output that means “refused to answer”, if there is one.", metavar="K",
        group="data", resumes=True,
    )  # fmt: skip
    device: str = option(
        "cpu", WORD, "Where the model runs: cpu, cuda, cuda:1, …", metavar="DEVICE", group="model", resumes=True
    )
    batch_size: int | None = option(
        None, COUNT, "Most points per pass through the model; by default 256, fewer for large inputs.", metavar="N",
        resumes=True,
    )  # fmt: skip
    call_timeout: float | None = option(
        None,
        Number(0, LARGEST_COUNT, quotient=True),
        "Longest time that one pass may take, or your code before the first pass; 0: no limit. By default 300 seconds, "
        "or 20 times the longest pass so far where that is more. Watched by the command line only.",
        metavar="SECONDS",
    )
    workers: int | None = option(
        None, COUNT, "Processes that share the attacks; results do not depend on N.", metavar="N"
    )
    ray: str = option(
        "", WORD, "Ray cluster that runs the attacks: auto, local (started here) or ray://head:10001.",
        metavar="ADDRESS",
    )  # fmt: skip
    memory: int | None = option(
        None, Size(1, 2**63 - 1), "Most memory that each process may take, e.g. 4GB; where it runs out, batches are "
        "halved.", metavar="SIZE",
    )  # fmt: skip
    select: tuple[str, ...] = option(
        (),
        WORDS,
        "Run only these probes and attacks; the reference attack and the unbounded one always run.",
        metavar="RULE",
    )
    ignore: tuple[str, ...] = option((), WORDS, "Leave these probes and attacks out.", metavar="RULE")
    attacks: tuple[str, ...] = option((), WORDS, "Add an attack: torchattacks:NAME.", metavar="NAME", flag="--attack")
    branches: tuple[str, ...] = option(
        (), WORDS, "Also search through the gradient of this branch (a module) alone, and through all others.",
        metavar="MODULE", flag="--branch",
    )  # fmt: skip
    certified: float | None = option(
        None, SHARE, "Certified lower bound of robust accuracy, if one is known.", metavar="FRACTION", one_model=True
    )
    certify: bool = option(
        False, Flag(), "Prove points robust by interval and CROWN bounds, where the network allows it.", resumes=True
    )
    black_box: bool = option(
        False, Flag(), "The model is only asked: no gradients are looked for.", group="model", resumes=True
    )
    queries: int | None = option(
        None, COUNT, "Most points that a black box is asked, all attacks together.", metavar="N", resumes=True
    )
    rate: float | None = option(None, LENGTH, "Most points per second that a black box is asked.", metavar="NUMBER")
    fail_on: FailOn = option(
        "masked", Choice(*FAIL_ON), "The mildest verdict that fails, with status 1 (inconclusive: 3)."
    )
    plan: Plan | None = None
    arch: str = ""
    weights: str = ""
    defaults: tuple[str, ...] = ()
    command: str = ""

    def __post_init__(self) -> None:
        check_options(self)
        if self.workers is not None and self.ray:
            raise UsageError("Give either --workers or --ray, not both.")

    @property
    def effort(self) -> Budget:
        """The figures behind the budget's name, those of the standard one for a budget in time or passes.

        Those of a black box with limited queries fit into them.
        """
        whole = BUDGETS.get(self.budget, BUDGETS["standard"])
        if not self.black_box or self.queries is None:
            return whole
        points = max(1, min(whole.points, self.queries // QUERIES_PER_POINT))
        each = max(1, (self.queries - QUERIES_TO_BEGIN * points) // (QUERY_SHARES * points))
        return dataclasses.replace(
            whole, points=points, claim_points=points, queries=min(whole.queries, each),
            decision_queries=min(whole.decision_queries, each), noise_draws=min(whole.noise_draws, each),
        )  # fmt: skip

    def looks(self, available: int) -> tuple[int, ...]:
        """Numbers of points at which the verdict is looked at, given how many the data set has.

        Each is larger than the one before by a constant factor, so that no audit draws many more points than its
        verdict needs; the test of the verdict holds at all looks at once, however many.
        """
        most = available if self.samples == "all" else min(available, self.samples or self.effort.points)
        if self.black_box:  # no comparison of attacks could be decided sooner
            return (most,)
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
        None, WORD, "Module of a state dict: net.py:factory, pkg.mod:factory, timm:NAME, torchvision:NAME, hf:ID.",
        metavar="SPEC", group="model", path="source",
    )  # fmt: skip
    weights: str | None = option(
        None, WORD, "Which weights of a checkpoint are meant, where several fit, e.g. state_dict_ema.", metavar="NAME",
        group="model", one_model=True,
    )  # fmt: skip
    data: str | None = option(
        None, WORD,
        f"{', '.join(BUILT_IN_DATA)}, a file (.npz, .npy, .pt, .safetensors, .csv, .parquet, .tar), a folder "
        "of class folders, torchvision:NAME, hf:ID or py:CODE.",
        metavar="SOURCE", group="data", path="source",
    )  # fmt: skip
    target: str | None = option(None, WORD, "Column of a table that holds the labels.", metavar="COLUMN", group="data")
    features: str | None = option(
        None, WORD, "What the columns of a table may be: bounds, eps, integer, categorical, frozen (TOML or JSON).",
        metavar="FILE", group="data", path="file",
    )  # fmt: skip
    norm: Norm | None = option(None, Choice(*get_args(Norm)), "Norm of the ball.", group="data")
    eps: float | None = option(
        None, LENGTH, "Radius of the ball in input units, e.g. 8/255.", metavar="NUMBER", group="data"
    )
    bounds: tuple[float, float] | None = option(
        None, Checked(Items(INPUT, 2, 2), "two numbers, smallest first, such as 0,1", lambda b: b[0] < b[1]),
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
        None, Either(WORD, PLAN), "Stages of the adaptive attack, as plan.json of --out has them.", metavar="FILE",
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
