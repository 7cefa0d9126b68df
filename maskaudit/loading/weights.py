"""Sets of weights: every one that a checkpoint holds, and those among them that fit a module.

A checkpoint is nested objects with tensors by name. Frameworks put prefixes before the names (`module.`, `model.`,
`net.`), and other things beside the weights: losses, teachers, averages of the same weights, optimizer states. A set
of weights is one place in the file and one prefix there; it fits when the module's state can be filled from it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

#: How many objects may lie inside each other, and how many are looked into.
MAX_DEPTH, MAX_OBJECTS = 4, 1_000
#: Longest list of objects that is looked into.
MAX_LISTED = 100
#: Parts of a name that a prefix may have, and sets that one object may hold.
MAX_PARTS, MAX_SETS = 8, 50
#: Parts that wrappers put inside names: torch.compile, FSDP, activation checkpoints, DataParallel.
INFIXES = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.")
#: First parts of names that belong to training and not to the network.
FOREIGN = re.compile(
    r"criteri\w+|\w*loss\w*|\w*teacher\w*|(?:\w+_)?ema(?:_\w+)?|n_averaged|initted|step|epoch|optim\w*|\w*sched\w*"
    r"|\w*metrics?|(?:train|val|valid|validation|test)_\w+|discriminator|\w*attack\w*|\w*accuracy",
    re.IGNORECASE,
)
#: Names of averages over training, which authors report; and of what is only learnt from.
AVERAGE = re.compile(r"(?:^|[^a-z])(?:ema|swa|averaged?|shadow)(?:$|[^a-z])", re.IGNORECASE)
TEACHER = re.compile("teacher", re.IGNORECASE)
#: Where Lightning's `WeightAveraging` keeps the weights of the last step, beside their average in `state_dict`.
LAST_STEP = "current_model_state"
#: Objects that never hold weights.
STATES = re.compile(r"\w*optim\w*|\w*sched\w*|\w*scaler\w*", re.IGNORECASE)
#: The set whose names are the module's own, at the top of the file.
TOP = "top"


@dataclass(frozen=True, eq=False)
class Holder:
    """An object of a checkpoint that holds tensors: its keys from the top, and its tensors by name.

    `listed`: it is a list of averages in the order of a module's parameters; the names are their numbers.
    """

    path: tuple[str, ...]
    entries: Mapping[str, Any]
    listed: bool = False


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors of a holder under one prefix, held against what a module expects.

    Attributes:
        state: by the module's names.
        missing, unexpected: names that it lacks, and names under the prefix that the module does not have.
        misshapen: name, shape found and shape expected.
        aside: names in the file that belong to something else.
    """

    holder: Holder
    prefix: str
    state: dict[str, Any]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    aside: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What `--weights` calls it: keys and prefix."""
        return "/".join([*self.holder.path, *([self.prefix.rstrip(".")] if self.prefix else [])]) or TOP

    @property
    def fits(self) -> bool:
        """Whether the module's state can be filled from it, and nothing of it is left over."""
        return not (self.missing or self.unexpected or self.misshapen)

    @property
    def averaged(self) -> bool:
        """Whether it is an average over training: by its name, or by the counter that torch's `AveragedModel` keeps."""
        counter = f"{self.prefix.removesuffix('module.')}n_averaged"
        return bool(AVERAGE.search(self.name)) or (self.prefix.endswith("module.") and counter in self.holder.entries)

    @property
    def rank(self) -> tuple[bool, bool, int, int, str]:
        """Order of preference: averages first, teachers and what was averaged last, then what is nearest to the top."""
        last = bool(TEACHER.search(self.name)) or LAST_STEP in self.holder.path
        return not self.averaged or last, last, len(self.holder.path), len(self.prefix), self.name


@dataclass(frozen=True, eq=False)
class Expected:
    """What a module's state holds: entries by name, and names that share one tensor."""

    entries: Mapping[str, Any]
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module) -> Expected:
        """The state of a module."""
        entries = module.state_dict(keep_vars=True)
        groups: dict[int, list[str]] = {}
        for name, value in entries.items():
            groups.setdefault(id(value), []).append(name)
        tied = {name: tuple(group) for group in groups.values() if len(group) > 1 for name in group}
        return cls(entries, tied)

    def under(self, prefix: str) -> Expected:
        """The same by names without a prefix that all of them have."""
        cut = len(prefix)
        tied = {name[cut:]: tuple(other[cut:] for other in group) for name, group in self.tied.items()}
        return Expected({name[cut:]: value for name, value in self.entries.items()}, tied)

    def prefixes(self) -> Iterator[str]:
        """Prefixes that all names have, the shortest first."""
        first, *others = self.entries or [""]
        for end in [match.end() for match in re.finditer(r"\.", first)][:MAX_PARTS]:
            if not all(name.startswith(first[:end]) for name in others):
                return
            yield first[:end]


def holders(content: object) -> list[Holder]:
    """Every object with tensors by name in what a checkpoint holds, the outermost first."""
    found: list[Holder] = []
    waiting = [Holder((), top)] if (top := _by_name(content)) is not None else []
    for at in waiting:  # grows on the way
        entries = {key: value for key, value in at.entries.items() if isinstance(key, str)}
        tensors = {k: v for k, v in entries.items() if isinstance(v, Tensor) or k.endswith("_extra_state")}
        if any(isinstance(value, Tensor) for value in tensors.values()):
            found.append(Holder(at.path, tensors))
        found += [one for key, value in entries.items() if (one := _average(value, (*at.path, key))) is not None]
        if len(at.path) < MAX_DEPTH:
            below = ((k, _by_name(v)) for k, v in entries.items() if not STATES.fullmatch(k))
            inner = [(k, v) for k, v in below if v is not None]
            waiting += [Holder((*at.path, k), v) for k, v in inner[: MAX_OBJECTS - len(waiting)]]
    return found


def _average(value: object, path: tuple[str, ...]) -> Holder | None:
    """An average that was kept as a list of tensors, as by torch_ema and diffusers."""
    if not isinstance(value, (list, tuple)) or not value or not AVERAGE.search("/".join(path)):
        return None
    named = {str(number): one for number, one in enumerate(value) if isinstance(one, Tensor)}
    return Holder(path, named, listed=True) if len(named) == len(value) else None


def _by_name(value: object) -> Mapping[Any, Any] | None:
    """An object whose entries have names; those of a list, as the members of an ensemble, are numbered."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)) and value and len(value) <= MAX_LISTED:
        return {str(n): v for n, v in enumerate(value)} if all(isinstance(one, Mapping) for one in value) else None
    return None


def candidates(module: nn.Module, found: list[Holder]) -> list[Weights]:
    """Sets of weights held against a module: all that fit, the preferred first; else the one that comes nearest.

    Names are taken as they are; then without parts that wrappers put inside; then with a prefix that all names of the
    module have and those of the file lack.
    """
    expected = Expected.of(module)
    found, lists = [one for one in found if not one.listed], [one for one in found if one.listed]
    plain = [Holder(one.path, stripped) for one in found if (stripped := _without_infixes(one.entries))]
    nearest: list[Weights] = []
    for prefix in ("", *expected.prefixes()):
        wanted = expected.under(prefix)
        for group in (found, plain):
            sets = [weights for one in group for weights in _sets(one, wanted, prefix)]
            fitting = [one for one in sets if one.fits]
            if fitting:
                beside = min(fitting, key=lambda one: one.rank).state
                fitting += [one for held in lists if (one := _in_order(held, module, beside)).fits]
                return sorted(fitting, key=lambda one: one.rank)
            nearest += sets
    nearest += [_in_order(held, module, {}) for held in lists]
    return [max(nearest, key=lambda one: len(one.state) - len(one.misshapen))] if nearest else []


def _in_order(holder: Holder, module: nn.Module, beside: Mapping[str, Any]) -> Weights:
    """A list of averages as weights: the parameters are its tensors in order, buffers are those of the set beside."""
    names = [name for name, _ in module.named_parameters()]
    averaged = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    by_name = dict(zip(names, holder.entries.values(), strict=False)) if len(names) == len(holder.entries) else {}
    rest = {name: value for name, value in beside.items() if name not in averaged}
    return _against(replace(holder, entries={**rest, **by_name}), "", Expected.of(module), "", ())


def _without_infixes(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries without wrappers' parts in their names; nothing where there are none, or two become one."""
    plain = {INFIXES.sub("", name): value for name, value in entries.items()}
    return plain if len(plain) == len(entries) and plain.keys() != entries.keys() else {}


def _sets(holder: Holder, expected: Expected, added: str) -> list[Weights]:
    """The sets of one object, one for each prefix under which it has a name of the module."""
    counts: Counter[str] = Counter()
    for name in holder.entries:
        for start in _starts(name):
            if name[start:] in expected.entries:
                counts[name[:start]] += 1
    spare = len(expected.tied) - len(set(expected.tied.values()))
    whole = [prefix for prefix, count in counts.items() if count + spare >= _least(expected)][:MAX_SETS]
    chosen = dict.fromkeys([*whole, *(prefix for prefix, _ in counts.most_common(2)), *([] if counts else [""])])
    return [_against(holder, prefix, expected, added, whole) for prefix in chosen]


def _starts(name: str) -> list[int]:
    return [0, *(match.end() for match, _ in zip(re.finditer(r"\.", name), range(MAX_PARTS), strict=False))]


def _least(expected: Expected) -> int:
    return sum(not _optional(name) for name in expected.entries)


def _optional(name: str) -> bool:
    """A counter of batch norm that older files lack, and that evaluation does not use."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _against(holder: Holder, prefix: str, expected: Expected, added: str, whole: Collection[str]) -> Weights:
    own = {name[len(prefix) :]: value for name, value in holder.entries.items() if name.startswith(prefix)}
    state = {name: value for name, value in own.items() if name in expected.entries}
    for name, group in expected.tied.items():
        partner = next((other for other in group if other in own), None)
        if name not in state and partner is not None:
            state[name] = own[partner]
    others = [other[len(prefix) :] for other in whole if other.startswith(prefix) and other != prefix]
    left = [name for name in own if name not in expected.entries]
    foreign = {name for name in left if FOREIGN.fullmatch(name.partition(".")[0]) or name.startswith(tuple(others))}
    outside = [name for name in holder.entries if not name.startswith(prefix)]
    return Weights(
        holder, prefix, {added + name: value for name, value in state.items()},
        missing=tuple(added + name for name in expected.entries if name not in state and not _optional(name)),
        unexpected=tuple(added + name for name in left if name not in foreign),
        misshapen=tuple(
            (added + name, tuple(value.shape), tuple(expected.entries[name].shape))
            for name, value in state.items()
            if _misshapen(value, expected.entries[name])
        ),
        aside=(*outside, *(prefix + name for name in left if name in foreign)),
    )  # fmt: skip


def _misshapen(value: object, expected: object) -> bool:
    if not isinstance(value, Tensor) or not isinstance(expected, Tensor) or value.is_nested:
        return False
    if is_lazy(expected):
        return False
    return value.shape != expected.shape
