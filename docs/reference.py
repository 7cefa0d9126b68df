"""The generated pages: probes and attacks from their docstrings, commands from click."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click

from maskaudit.attacks import losses, torchattacks_adapter
from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.registry import UNBOUNDED
from maskaudit.auditing.catalogue import catalogue
from maskaudit.cli import CONTEXT, cli
from maskaudit.probes.docs import explanation
from maskaudit.probes.interface import Probe
from maskaudit.settings import BUDGETS, CORRECT_POINTS, MOST_DRAWN, Budget, looks_up_to
from maskaudit.verdict.limits import INFORMATIVE, LIMITS

NOTE = "<!-- Written by docs/generate.py; edit the source instead. -->\n\n"

NEEDS = {
    "gradients": "gradients of the model",
    "module": "a torch module whose layers can be observed",
    "attacks": "the outcomes of the attacks",
}

#: Per role: name of the family, what it counts for, what to do when it breaks points.
ROLES: dict[str, tuple[str, str, str]] = {
    "reference": (
        "the usual reference",
        "What a claimed robust accuracy is commonly computed with. It is reported and never judged alone.",
        "Compare the claim with the accuracy under all attacks, not with this row.",
    ),
    "ce": (
        "white-box, cross-entropy",
        "It shows what the model's gradients of the usual loss find with other step sizes, more steps or restarts. "
        "What it breaks beyond the reference means that the reference was weak. It does not mean masking.",
        "If it breaks points that the reference leaves, add it to your evaluation.",
    ),
    "strong": (
        "white-box, other losses",
        "It follows the model's gradients of a loss other than cross-entropy. Points broken here and by no attack on "
        "cross-entropy count as hidden at *loss level*.",
        "Find out why the usual loss is flat: `loss-decision-gradient-ratio` and `output-kind` among the "
        "[probes](probes.md) tell.",
    ),
    "challenger": (
        "challengers",
        "An attack that does not trust the model's gradients. Points broken here and by no white-box attack "
        "count as hidden at *gradient level*.",
        "Look at what the [probes](probes.md) say about the gradient, repair the operation that they point at, and "
        "attack again.",
    ),
    "repaired": (
        "repaired",
        "A gradient attack through a copy whose backward pass was repaired; every example is scored on the original "
        "model. Points broken here and by no white-box attack count as hidden at *gradient level*.",
        "The repaired operation is the culprit: report the accuracy that is left under this attack.",
    ),
    "second_opinion": (
        "second opinion",
        "An independent implementation, run on a sample of the points not broken yet. Its examples count for the best "
        "known accuracy and prove no level.",
        "If it breaks a point that nothing of ours breaks, run more of its attacks with `--attack torchattacks:NAME`.",
    ),
    "exact": (
        "search by bounds",
        "A search that knows the network's inside and trusts no gradient at the clean point. Its examples count for "
        "the best known accuracy, and so against a claim. They prove no level: a point that only such a search finds "
        "is hard, and not hidden by a fault of the gradient.",
        "Report the accuracy that is left, and do not take the white-box attacks for the last word on this network.",
    ),
    "sanity": (
        "sanity check",
        "It may leave the ball on purpose, so it should break every point. It is not counted in any robust accuracy; "
        "the probe `unbounded-attack` reads it.",
        "Unbroken points show that the attack was misled: see [unbounded-attack](probes.md#unbounded-attack).",
    ),
}

#: What an attack goes by, per kind.
KINDS = {
    "gradient": "follows the model's gradients",
    "score": "asks for class scores only",
    "decision": "asks for the predicted class only",
    "transfer": "follows the gradients of other models",
    "random": "guesses",
    "exact": "bounds the network's answers part by part",
    "universal": "carries over what was found at other points",
    "repaired": "follows gradients through a repaired backward pass",
    "sanity": "follows the model's gradients",
}

#: The loss that a setting names.
LOSSES = {
    "ce": losses.cross_entropy,
    "margin": losses.margin,
    "dlr": losses.dlr,
    "rescaled": losses.start_scale,
    "targeted-margin": losses.targeted_margin,
    "targeted-dlr": losses.targeted_dlr,
}

#: Help for options whose name says enough on the command line.
PLAIN_OPTIONS = {
    "--out": "Folder for what is written.",
    "--json": "Print JSON.",
    "--version": "Show the version and exit.",
}


def all_attacks(budget: Budget = BUDGETS["standard"]) -> tuple[AttackSpec, ...]:
    """Every attack of an audit, as `maskaudit probes` lists them, and the sanity check."""
    return (*catalogue(budget).attacks, UNBOUNDED)


def probes_page() -> str:
    """`probes.md`."""
    lines = [
        "# Probes\n",
        NOTE,
        "A probe measures something about the model or its gradients. It does not judge: a finding says that a figure "
        "is past its limit. Whether the model is masked is decided by attacks on the same points, see "
        "[the verdict](verdict.md). `maskaudit explain RULE` prints the sections of this page.\n\n",
        "Rates have exact intervals at 99 %. A probe that cannot run on a model is `not_applicable` with the reason. "
        "A probe that crashes is an `error` and does not stop the audit.\n\n",
        "| rule | raised when |\n| --- | --- |\n",
    ]
    probes = catalogue(BUDGETS["standard"]).probes
    for probe in probes:
        lines.append(f"| [{probe.rule}](#{probe.rule}) | {markdown(one_line(explanation(probe).raised_when))} |\n")
    return "".join([*lines, *(probe_section(probe) for probe in probes)])


def probe_section(probe: Probe) -> str:
    """One probe, from its docstring."""
    explained = explanation(probe)
    limit = LIMITS.get(probe.rule)
    if limit is not None:
        compared = "; the lower end of the interval is compared" if limit.on == "low" else ""
        graded = f"{limit.direction} {limit.value:g} ({limit.unit}{compared})"
    else:
        graded = f"none: {INFORMATIVE.get(probe.rule, 'it informs')}"
    needs = " and ".join(NEEDS[need] for need in sorted(probe.needs)) or "answers of the model only"
    sections = (
        ("Raised when", explained.raised_when),
        ("What it means", explained.meaning),
        ("What to do", explained.remedy),
    )
    return "".join(
        [
            f"\n## {probe.rule}\n\n**{markdown(explained.title)}**\n\n{prose(explained.definition)}",
            *(f"**{heading}.** {prose(content)}" for heading, content in sections),
            f"**Limit.** {graded}. **Needs.** {needs}.\n\n",
            sources(probe.sources),
        ]
    )


def attacks_page() -> str:
    """`attacks.md`."""
    lines = [
        "# Attacks\n",
        NOTE,
        "All attacks run in the same ball and the same bounds, each on the correctly classified points that it can "
        "still decide. White-box attacks are matched: on every point that another loss broke, cross-entropy gets as "
        "many runs as all other losses together ([the verdict](verdict.md)). An attack only proposes examples. Code "
        "that did not make them scores each one afresh.\n\n",
        "| budget | points at which the verdict is looked at |\n| --- | --- |\n",
        *(
            f"| `{name}` | {', '.join(str(n) for n in looks_up_to(budget.points))} |\n"
            for name, budget in BUDGETS.items()
        ),
        f"\nWhere fewer than {CORRECT_POINTS} points are answered rightly, or only the loss level is open, `quick` "
        f"without `--samples` draws further ones if they may decide, up to {MOST_DRAWN} in all.\n",
        "\n| attack | family | what it is |\n| --- | --- | --- |\n",
    ]
    for spec in all_attacks():
        lines.append(f"| [{spec.name}](#{spec.name}) | {family(spec)[0]} | {markdown(spec.title)} |\n")
    lines.append(
        "\n`--attack torchattacks:NAME` adds any attack of torchattacks, if that is installed. It counts as a "
        "challenger when it asks for scores only, else as a white-box attack on cross-entropy or on another loss.\n"
    )
    return "".join([*lines, *(attack_section(spec) for spec in all_attacks())])


def family(spec: AttackSpec) -> tuple[str, str, str]:
    """The texts of an attack's family."""
    return ROLES["ce" if spec.role == "strong" and spec.family == "cross_entropy" else spec.role]


def attack_section(spec: AttackSpec) -> str:
    """One attack, from the docstrings of its module, function and loss."""
    name, meaning, remedy = family(spec)
    module = sys.modules[spec.run.__module__]
    how = description(spec.run.__doc__)
    if spec.role == "second_opinion":
        module, how = torchattacks_adapter, description(torchattacks_adapter.run_torchattacks.__doc__)
    lines = [
        f"\n## {spec.name}\n\n**{markdown(spec.title)}**\n\n",
        f"**Family.** {name[0].upper()}{name[1:]}. It {KINDS[spec.kind]}.\n\n",
        f"**How.** {prose(how)}" if how else "",
    ]
    if isinstance(loss := spec.settings.get("loss"), str):
        lines.append(f"**Loss.** `{loss}`: {prose(description(LOSSES[loss].__doc__))}")
    if len(background := description(module.__doc__).split("\n\n")) > 1:
        lines.append("**Background.** " + prose("\n\n".join(background)))
    lines += [f"**What it counts for.** {meaning}\n\n", f"**What to do.** {remedy}\n\n", settings(spec.name)]
    return "".join([*lines, sources(spec.sources)])


def settings(name: str) -> str:
    """An attack's settings in every budget."""
    rows = {
        budget: {spec.name: spec.settings for spec in all_attacks(effort)}[name] for budget, effort in BUDGETS.items()
    }
    keys = list(next(iter(rows.values())))
    if not keys:
        return ""
    head = f"| budget | {' | '.join(keys)} |\n|{' --- |' * (len(keys) + 1)}\n"
    return head + "".join(f"| `{b}` | {' | '.join(str(row[k]) for k in keys)} |\n" for b, row in rows.items()) + "\n"


def commands_page() -> str:
    """`commands.md`."""
    lines = [
        "# Commands\n",
        NOTE,
        "Progress and messages go to stderr, results to stdout. The exit statuses are described "
        "under [formats](formats.md#exit-status).\n\n",
        "| command | |\n| --- | --- |\n",
    ]
    for path, command in walk():
        title = first_paragraph(command.help)
        lines.append(f"| [`{path}`](#{path.replace(' ', '-')}) | {markdown(title)} |\n")
    for path, command in walk():
        lines.append(f"\n## {path}\n\n```text\n{usage(path, command)}\n```\n\n{help_text(command.help)}{options(path)}")
    return "".join(lines)


def walk() -> Iterator[tuple[str, click.Command]]:
    """(full name, command) of the program, its commands and their sub-commands."""

    def descend(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                yield from descend(f"{path} {name}", child)

    return descend("maskaudit", cli)


def context(path: str, command: click.Command) -> click.Context:
    """The click context in which a command is described."""
    return click.Context(command, info_name=path, help_option_names=CONTEXT["help_option_names"])  # type: ignore[arg-type]


def usage(path: str, command: click.Command) -> str:
    """The usage line of `--help`."""
    return " ".join([path, *command.collect_usage_pieces(context(path, command))])


def options(path: str) -> str:
    """The options of a command as a list."""
    command = dict(walk())[path]
    ctx = context(path, command)
    lines = []
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if isinstance(parameter, click.Option) and record is not None and "--help" not in parameter.opts:
            names, text = record
            if not parameter.help:
                text = " ".join(filter(None, (PLAIN_OPTIONS.get(parameter.opts[-1], ""), text)))
            several = " May be given several times." if parameter.multiple else ""
            lines.append(f"- `{names}`: {markdown(text)}{several}\n")
    return "".join(lines)


def help_text(text: str | None) -> str:
    """A command's help as Markdown; click's preformatted paragraphs become blocks."""
    parts = []
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        if paragraph.startswith("\b"):
            parts.append("```text\n" + paragraph.removeprefix("\b\n") + "\n```\n\n")
        else:
            parts.append(prose(paragraph))
    return "".join(parts)


def first_paragraph(text: str | None) -> str:
    """The first paragraph of a command's help."""
    return one_line(inspect.cleandoc(text or "").split("\n\n")[0])


def description(docstring: str | None) -> str:
    """A docstring up to its first section (Args, Returns, Raises)."""
    return re.split(r"\n\n(?:Args|Returns|Raises):\n", inspect.cleandoc(docstring or ""))[0].strip()


def sources(entries: tuple[str, ...]) -> str:
    """The citations."""
    return "**Source**\n\n" + "".join(f"- {markdown(entry)}\n" for entry in entries)


def prose(content: str) -> str:
    """Paragraphs (one a line, or separated by empty lines) as Markdown."""
    blocks = content.split("\n\n") if "\n\n" in content else [content]
    return "".join(listed(block) + "\n\n" for block in blocks if block.strip())


def listed(block: str) -> str:
    """A paragraph on one line; a dashed list stays a list."""
    if block.startswith("- "):
        items = re.split(r"\n(?=- )", block)
        return "\n".join(markdown(one_line(item)) for item in items)
    return markdown(one_line(block))


def one_line(content: str) -> str:
    """White space closed up."""
    return " ".join(content.split())


def markdown(content: str) -> str:
    """Text with the signs escaped that Markdown would read as its own, outside `code`."""
    pieces = content.split("`")
    for i in range(0, len(pieces), 2):
        pieces[i] = re.sub(r"[\\*<|]|\](?=\()", r"\\\g<0>", pieces[i])
    return "`".join(pieces)


def zoo_table() -> str:
    """Every model of the zoo with what is known of it, by data set."""
    from maskaudit.zoo import ZOO
    from maskaudit.zoo.truth import read_truths

    truths = read_truths()
    parts = []
    for data in sorted({entry.data for entry in ZOO.values()}):
        parts.append(
            f"\n**{data}**\n\n| model | what it is | part | truth | clean | best known | gradient | loss "
            "| right mechanism |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        )
        for entry in (entry for entry in ZOO.values() if entry.data == data):
            truth = truths[entry.name]
            best = f"{truth.best_known:.3f}"
            if truth.certified_accuracy is not None:
                best += f" (certified {truth.certified_accuracy:.3f})"
            parts.append(
                f"| `{entry.name}` | {entry.title} | {entry.part} | {'masked' if entry.masked else 'not masked'} "
                f"| {truth.clean:.3f} | {best} | {truth.gradient_gap:.3f} | {truth.loss_gap:.3f} "
                f"| {', '.join(entry.mechanisms) if entry.masked else ''} |\n"
            )
    return "".join(parts)
