"""State dicts: finding one inside a checkpoint and putting it into a module."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from maskaudit.errors import InputError, describe_error, printable

#: Keys under which training scripts put the state dict, most specific first.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
#: Prefixes that wrappers put before every name: DataParallel, torch.compile, Lightning and habits.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
#: How many wrappers may lie inside each other.
MAX_DEPTH = 3
#: How many prefixes are dropped from names, one after the other.
MAX_PREFIXES = 8
#: How many keys a message lists.
SHOWN = 3


def find_state(content: object, source: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The state dict inside what a checkpoint holds, and a note if it was unwrapped.

    Raises:
        InputError: when there is none.
    """
    taken: list[str] = []
    inner = content
    for _ in range(MAX_DEPTH):
        if not isinstance(inner, Mapping):
            break
        if _is_state(inner):
            notes = (f"The weights are those under {'/'.join(taken)} in the checkpoint.",) if taken else ()
            return dict(inner), notes
        key = next((key for key in WRAPPERS if isinstance(inner.get(key), Mapping)), None)
        if key is None:
            break
        taken.append(key)
        inner = inner[key]
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


def fit(module: nn.Module, state: Mapping[str, Any], source: str, spec: str) -> tuple[str, ...]:
    """Load `state` into `module`, every name and shape matching; returns notes.

    A prefix common to all names is dropped where that makes them match.

    Raises:
        InputError: naming the first missing, unexpected or misshapen entries.
    """
    expected = module.state_dict()
    renamed, prefix = _best_names(state, expected.keys())
    unplain = [f"{n} ({trouble})" for n, value in renamed.items() if (trouble := _unplain(value, expected.get(n)))]
    if unplain:
        raise InputError(f"{source} holds tensors that are no weights: {_few(unplain)}; save plain dense tensors.")
    misshapen = [
        f"{name} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
        for name, value in renamed.items()
        if name in expected
        and isinstance(value, Tensor)
        and isinstance(expected[name], Tensor)
        and not is_lazy(expected[name])
        and value.shape != expected[name].shape
    ]
    if misshapen:
        raise InputError(f"{source} does not fit {spec}: {_few(misshapen)}; check the SPEC's arguments.")
    try:
        missing, unexpected = module.load_state_dict(renamed, strict=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{source} does not fit {spec}: {describe_error(error)}.") from error
    problems = [f"{word} {_few(names)}" for word, names in (("missing", missing), ("unexpected", unexpected)) if names]
    if problems:
        raise InputError(f"{source} does not fit {spec}: {'; '.join(problems)}. Check that the SPEC is the right one.")
    notes = [f"The prefix {prefix!r} was dropped from the names of the weights."] if prefix else []
    return (*notes, *_converted(renamed, expected))


def count_numbers(state: Mapping[str, Any]) -> int:
    """Scalars held by the tensors of a state dict."""
    return sum(value.numel() for value in state.values() if isinstance(value, Tensor))


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(key, str) and (isinstance(value, Tensor) or key.endswith("_extra_state"))
        for key, value in content.items()
    )


def _unplain(value: object, expected: object) -> str:
    """What makes a tensor unfit as a weight: layouts whose indices are not checked, and no values at all."""
    if not isinstance(value, Tensor):
        return ""
    if value.is_nested or value.layout != torch.strided:
        return "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    lossy = value.is_complex() and isinstance(expected, Tensor) and not expected.is_complex()
    return "without values" if value.is_meta else "complex in place of real" if lossy else ""


def _best_names(state: Mapping[str, Any], expected: Iterable[str]) -> tuple[dict[str, Any], str]:
    """The renaming, by dropping prefixes common to all names, that matches most expected names, and what it drops."""
    wanted = set(expected)
    best, best_prefix = dict(state), ""
    current, dropped = best, ""
    for _ in range(MAX_PREFIXES):
        prefix = next((item for item in PREFIXES if all(name.startswith(item) for name in current)), None)
        if prefix is None or not current:
            return best, best_prefix
        current = {name.removeprefix(prefix): value for name, value in current.items()}
        dropped += prefix
        if len(wanted & current.keys()) > len(wanted & best.keys()):
            best, best_prefix = current, dropped
    return best, best_prefix


def _converted(state: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, ...]:
    changes = {
        f"{value.dtype} to {expected[name].dtype}".replace("torch.", "")
        for name, value in state.items()
        if isinstance(value, Tensor) and isinstance(expected.get(name), Tensor) and value.dtype != expected[name].dtype
    }
    return (f"Weights were converted from {', '.join(sorted(changes))}.",) if changes else ()


def _few(items: list[str]) -> str:
    shown = ", ".join(printable(item, 80) for item in items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict with {_few([str(key) for key in content])}" if content else "an empty dict"
    return f"an object of type {type(content).__name__}"
