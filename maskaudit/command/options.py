"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from maskaudit.repairs.plan import Plan


def fraction(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """`8/255` or a decimal."""
    if value is None:
        return None
    try:
        top, slash, bottom = value.partition("/")
        return float(top) / float(bottom) if slash else float(value)
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(f"expected a number such as 0.03 or 8/255, got {value!r}.") from None


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """`0.49,0.48,0.45`."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers separated by commas, got {value!r}.") from None


def two_numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    pair = numbers(context, parameter, value)
    if pair is not None and len(pair) != 2:
        raise click.BadParameter(f"expected two numbers such as 0,1, got {value!r}.")
    return pair


def plan_file(context: click.Context, parameter: click.Parameter, value: str | None) -> Plan | None:
    """The plan in a file, checked."""
    if value is None:
        return None
    from maskaudit.repairs.plan_file import read_plan

    return read_plan(Path(value))


def check_config(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Take what the command line leaves out from a TOML file."""
    if value is None:
        return
    from maskaudit.command.check_config import read_check_options

    context.default_map = {**(context.default_map or {}), **read_check_options(Path(value))}


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """MODEL and what is needed to open it."""
    for option in (
        click.option("--trust-pickle", is_flag=True, help="Allow a pickled module to execute its code."),
        click.option("--device", default="cpu", show_default=True, help="Where the model runs: cpu, cuda, cuda:1, …"),
        click.option("--arch", metavar="SPEC", help="Module of a state dict: net.py:factory or pkg.mod:factory."),
        click.argument("model"),
    ):
        command = option(command)
    return command


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the model is shown and how its answers are read."""
    for option in (
        click.option(
            "--reject-class", type=int, metavar="K", help="Output that means “refused to answer”, if there is one."
        ),
        click.option(
            "--outputs", type=click.Choice(["logits", "probabilities", "auto"]), default="auto", show_default=True
        ),
        click.option("--std", callback=numbers, metavar="NUMBERS", help="Normalisation deviation per channel."),
        click.option("--mean", callback=numbers, metavar="NUMBERS", help="Normalisation mean per channel."),
        click.option("--bounds", callback=two_numbers, metavar="LOW,HIGH", help="Smallest and largest input value."),
        click.option(
            "--eps", callback=fraction, metavar="NUMBER", help="Radius of the ball in input units, e.g. 8/255."
        ),
        click.option("--norm", type=click.Choice(["Linf", "L2"]), help="Norm of the ball."),
        click.option(
            "--data",
            metavar="SOURCE",
            help="digits, fashion-mnist, x.npz, a folder of class folders, torchvision:NAME, hf:ID or py:CODE.",
        ),
    ):
        command = option(command)
    return command
