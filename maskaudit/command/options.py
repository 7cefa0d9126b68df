"""The options of `maskaudit.settings` as options of click."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maskaudit.declared import Choice
from maskaudit.declared.options import Group, Option
from maskaudit.settings import OPTIONS, TRAIN_OPTIONS

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # older versions of click do not have it generic
    _ParamType = click.ParamType

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Value(_ParamType):
    """What an option takes, read and checked as in every other place that has it."""

    name = "value"

    def __init__(self, option: Option) -> None:
        self.option = option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value of a word of the command line, or of a configuration."""
        return self.option.read_word(value)


def shared(key: str, **changes: Any) -> Decorator:
    """One option of an audit; `changes` are the values of its `Option` that this command has otherwise."""
    return _declared(replace(OPTIONS[key], **changes))


def _declared(one: Option) -> Decorator:
    key = one.key
    if one.is_flag:
        return click.option(one.flag, key, is_flag=True, help=one.help)
    choices = f"[{'|'.join(one.kind.choices)}]" if isinstance(one.kind, Choice) else ""
    return click.option(
        one.flag, key, type=Value(one), multiple=one.several, default=None if one.default in ("", ()) else one.default,
        show_default=one.default not in (None, "", ()), metavar=choices or one.metavar, help=one.help,
    )  # fmt: skip


def _group(*groups: Group) -> Decorator:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for key in reversed([key for key, one in OPTIONS.items() if one.group in groups]):
            command = shared(key)(command)
        return command

    return decorate


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """MODEL and what is needed to open it."""
    return click.argument("model")(_group("model")(command))


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Everything that determines a training but the method and the ball."""
    for one in reversed(TRAIN_OPTIONS.values()):
        command = _declared(one)(command)
    return command


data_options = _group("data")
audit_options = _group("audit")


def take_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of an audit out of a command's parameters; those without a value are left out."""
    return {key: value for key in OPTIONS if (value := options.pop(key, None)) is not None and value != ""}


def check_config(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Take what the command line leaves out from a TOML file."""
    if value is None:
        return
    from maskaudit.command.check_config import read_check_options

    context.default_map = {**(context.default_map or {}), **read_check_options(Path(value))}
