"""State dicts: finding one inside a checkpoint and putting it into a module."""

from __future__ import annotations

import shlex
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.declared.kinds import shown
from maskaudit.errors import InputError, UsageError, describe_error, meant, printable
from maskaudit.loading.weights import Expected, Holder, Weights, candidates, holders

#: Keys under which training scripts put a whole module.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
#: How many keys a message lists.
SHOWN = 3


def find_state(content: object, source: str) -> list[Holder]:
    """What holds tensors by name inside a checkpoint.

    Raises:
        InputError: when nothing does.
    """
    found = holders(content)
    if found:
        return found
    raise InputError(
        f"{source} holds {_describe(content)}, no state dict (names to tensors); "
        "save one with torch.save(model.state_dict(), FILE)."
    )


def need_arch(source: str) -> InputError:
    """The sentence for weights that come without the code they belong to."""
    return InputError(
        f"{source} is a state dict: say which module it belongs to, for example: "
        f"maskaudit check {shlex.quote(source)} --arch net.py:make_net"
    )


def fit(module: nn.Module, found: list[Holder], source: str, spec: str, name: str | None = None) -> tuple[str, ...]:
    """Fill `module` from the set of weights that fits it; returns notes.

    Of several the first by `Weights.rank` is taken, or the one called `name`.

    Raises:
        InputError: naming the first missing, unexpected or misshapen entries of the set that comes nearest.
        UsageError: there is no set of that name.
    """
    sets = candidates(module, found)
    chosen = sets[0] if name is None else _named(sets, name, source)
    expected = module.state_dict()
    unplain = [f"{n} ({trouble})" for n, value in chosen.state.items() if (trouble := _unplain(value, expected.get(n)))]
    if unplain:
        raise InputError(f"{source} holds tensors that are not weights: {_few(unplain)}; save plain dense tensors.")
    if not chosen.fits:
        raise InputError(_misfit(chosen, source, spec))
    _check_tied(module, chosen, source, spec)
    state = OrderedDict(chosen.state)
    if expected.keys() <= state.keys():  # some modules ask which version wrote them; what a file says is not read
        state._metadata = expected._metadata  # type: ignore[attr-defined]
    try:
        module.load_state_dict(state, strict=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{source} does not fit {spec}: {describe_error(error)}.") from error
    return (*_told(chosen, sets), *_converted(chosen.state, expected))


def _named(sets: list[Weights], name: str, source: str) -> Weights:
    """The set that fits and is called `name`."""
    fitting = {one.name: one for one in sets if one.fits}
    if name in fitting:
        return fitting[name]
    held = f"those that fit are {_few(list(fitting), 10)}" if fitting else "none in it fits"
    raise UsageError(f"{source} has no weights {shown(name)} that fit{meant(name, fitting)}; {held}.")


def _misfit(weights: Weights, source: str, spec: str) -> str:
    if weights.misshapen:
        wrong = [f"{name} {found} instead of {wanted}" for name, found, wanted in weights.misshapen]
        return f"{source} does not fit {spec}: {_few(wrong)}; check the SPEC's arguments."
    both = (("missing", weights.missing), ("unexpected", weights.unexpected))
    problems = "; ".join(f"{word} {_few(names)}" for word, names in both if names)
    remedy = "Check that the SPEC is the right one"
    if any(".lora_A." in name or ".lora_B." in name for name in weights.unexpected):
        remedy = "It holds an adapter beside its weights: merge it first (merge_and_unload of peft)"
    return f"{source} does not fit {spec}: {problems}. {remedy}."


def _check_tied(module: nn.Module, weights: Weights, source: str, spec: str) -> None:
    """Refuse two values for one tensor: which of them would count is chance."""
    for name, group in Expected.of(module).tied.items():
        other = next((o for o in group if o != name and not torch.equal(weights.state[o], weights.state[name])), None)
        if other is not None:
            raise InputError(
                f"{source} does not fit {spec}: {name} and {other} are one tensor there, and two different ones in the "
                "file. Check that the SPEC is the right one."
            )


def _told(chosen: Weights, sets: list[Weights]) -> tuple[str, ...]:
    """Where the weights were, and what else lies beside them."""
    notes = []
    if chosen.holder.path:
        notes.append(f"The weights are those under {printable('/'.join(chosen.holder.path))} in the checkpoint.")
    if chosen.prefix:
        notes.append(f"The prefix {printable(chosen.prefix)!r} was dropped from the names of the weights.")
    others = [one.name for one in sets if one is not chosen]
    if chosen.averaged:
        notes.append(f"The weights {printable(chosen.name)!r} are an average over training.")
    if others:
        notes.append(
            f"Several sets of weights fit: {printable(chosen.name)!r} is audited; --weights takes {_few(others, 10)} "
            "in its place."
        )
    if chosen.aside:
        notes.append(f"Entries next to the weights were not used: {_few(chosen.aside)}.")
    return tuple(notes)


def count_numbers(state: Mapping[str, Any]) -> int:
    """Scalars held by the tensors of a state dict."""
    return sum(value.numel() for value in state.values() if isinstance(value, Tensor))


def _unplain(value: object, expected: object) -> str:
    """What makes a tensor unfit as a weight: layouts whose indices are not checked, and no values at all."""
    if not isinstance(value, Tensor):
        return ""
    if value.is_nested or value.layout != torch.strided:
        return "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    lossy = value.is_complex() and isinstance(expected, Tensor) and not expected.is_complex()
    return "without values" if value.is_meta else "complex in place of real" if lossy else ""


def _converted(state: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, ...]:
    changes = {
        f"{value.dtype} to {expected[name].dtype}".replace("torch.", "")
        for name, value in state.items()
        if isinstance(value, Tensor) and isinstance(expected.get(name), Tensor) and value.dtype != expected[name].dtype
    }
    return (f"Weights were converted from {', '.join(sorted(changes))}.",) if changes else ()


def _few(items: Sequence[str], most: int = SHOWN) -> str:
    listed = ", ".join(printable(item, 80) for item in items[:most])
    return listed if len(items) <= most else f"{listed} and {len(items) - most} more"


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict with {_few([str(key) for key in content])}" if content else "an empty dict"
    return f"an object of type {type(content).__name__}"
