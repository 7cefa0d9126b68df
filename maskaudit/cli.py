"""The command line: options in, calls to the library, exit status out. No logic of its own."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import click

from maskaudit import __version__
from maskaudit.command import entry, streams
from maskaudit.command.options import (
    audit_options,
    check_config,
    data_options,
    model_options,
    shared,
    take_options,
    train_options,
)
from maskaudit.command.status import UNWRITTEN_STATUS
from maskaudit.errors import UsageError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="maskaudit")
def cli() -> None:
    """Is this model robust, or do its gradients merely lie? Audit classifiers for gradient masking.

    \b
    Exit status: 0 nothing at or above --fail-on · 1 a finding at or above it, or a check that failed
                 2 wrong usage, refused input, or an output that cannot be written · 3 inconclusive
                 4 the model failed while audited, or ended or hung its process · 70 a fault of maskaudit
                 130 interrupted from the keyboard · 143 ended by SIGTERM (both leave a partial report)
    """


def _line(text: str) -> None:
    from maskaudit.command.terminal import say

    say(f"{text}\n", streams.out())


def main() -> None:
    """Entry point: whatever happens becomes one sentence on stderr and an exit status."""
    entry.main(cli)


@cli.command()
@model_options
@data_options
@audit_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON document.")
@click.option("-o", "outputs_to", multiple=True, metavar="FORMAT=PATH",
              help="Write html, json, md, text, sarif, junit, evidence or plan.")  # fmt: skip
@click.option("--out", metavar="DIR",
              help="Write report.html, audit.json, summary.md, plan.json and evidence.safetensors.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with an interrupted audit in --out DIR.")
@click.option("--config", is_eager=True, expose_value=False, callback=check_config, metavar="FILE",
              help="TOML file with these options under [check]; the command line wins.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def check(model: str, **options: Any) -> None:
    """Audit MODEL for gradient masking.

    MODEL is a file (safetensors, state dict, TorchScript, .pt2, ONNX, or a pickled module with
    --trust-pickle), zoo:NAME, torchvision:NAME, timm:NAME, hf:ID, robustbench:NAME, py:pkg.mod:callable or a URL.
    """
    from maskaudit.command.output import parse_outputs
    from maskaudit.settings import AuditSettings, Request

    if options["resume"] and options["out"] is None:
        raise UsageError("--resume continues the audit in a folder: name the folder with --out DIR.")
    wanted = parse_outputs(options["outputs_to"], options["out"], as_json=options["as_json"])
    command = shlex.join(["maskaudit", *sys.argv[1:]])
    request = Request.of(model, take_options(options), AuditSettings(command=command))

    from maskaudit.command.auditing import check_and_show  # loads torch, which a wrong option need not wait for

    entry.finish(
        check_and_show(
            request, wanted, out=options["out"], resume=options["resume"], as_json=options["as_json"],
            quiet=options["quiet"], tell=entry.Session.current().tell,
        )
    )  # fmt: skip


@cli.command()
@model_options
@data_options
@shared("seed")
@shared("branches")
@click.option("--json", "as_json", is_flag=True, help="Print the inspection as one JSON document.")
@click.option("-o", "outputs_to", multiple=True, metavar="FORMAT=PATH", help="Write html, json or text.")
@click.option("--out", metavar="DIR", help="Write inspection.html and inspection.json.")
def inspect(model: str, as_json: bool, outputs_to: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Trace MODEL without attacking it: gradient flow by op, cuts, randomness, what would be repaired, branches.

    Only with --branch it searches for examples, through the gradient of that branch and without it.
    """
    from maskaudit.command.output import parse_outputs, write_all
    from maskaudit.command.terminal import say
    from maskaudit.report.inspection import DIRECTORY_FILES, FORMATS
    from maskaudit.settings import Request

    wanted = parse_outputs(outputs_to, out, formats=tuple(FORMATS), files=DIRECTORY_FILES, as_json=as_json)
    request = Request.of(model, take_options(options))

    from maskaudit.command.jobs import inspect_source  # loads torch

    inspection = inspect_source(request)
    say(FORMATS["json" if as_json else "text"](inspection), streams.out())
    write_all(wanted, lambda fmt: FORMATS[fmt](inspection).encode("utf-8", "replace"))
    if not as_json:
        for fmt, path in wanted:
            _line(f"{fmt:>9}: {path}")


@cli.command()
@click.argument("method")
@train_options
@shared("norm", help="Norm of the ball that training defends.")
@shared("eps", help="Its radius.")
@click.option("--out", required=True, metavar="FILE", help="Where to save; the file opens in `check` as it is.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted training of the same FILE.")
@click.option("--picture", metavar="FILE", help="Draw loss, accuracies and logit scale after every epoch (svg, png).")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def train(method: str, out: str, resume: bool, quiet: bool, picture: str | None, **options: Any) -> None:
    """Train a model by METHOD.

    METHOD is standard, fgsm-at, pgd-at, trades, distill, soft-distill, or of the GREAT paper great, greace, great+ce,
    great-distill, great-mtl; great-reduced, greace-reduced, great+ce-reduced are the small forms in the zoo.
    """
    from maskaudit.command.jobs import train_to_file

    train_to_file(method, out=Path(out), resume=resume, quiet=quiet, picture=picture, **options)
    _line(f"Saved {out}; audit it with: maskaudit check {shlex.quote(out)}")


@cli.command()
@click.option("--out", default="maskaudit-demo", show_default=True, metavar="DIR")
@shared("seed")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def demo(out: str, seed: int, quiet: bool) -> None:
    """Train a GRE(AT+CE) and a PGD-trained network on the embedded digits, audit both, write the reports."""
    from maskaudit.command.jobs import run_demo

    for name, label, sentence, report in run_demo(Path(out), seed=seed, quiet=quiet):
        _line(f"{name:<10} {label:<13} {sentence}\n           report: {report}")


@cli.command()
@click.argument("audit", metavar="DIR|AUDIT.JSON|EVIDENCE")
@model_options
@click.option("--sha256", metavar="DIGEST", help="Digest of audit.json that was published elsewhere.")
def verify(audit: str, model: str, sha256: str | None, **opening: Any) -> None:
    """Prove an audit: score its examples again on MODEL, and judge its recorded points again.

    Status 1 when an example does not hold, or when accuracy, levels, claim or verdict do not follow from the points.
    The last line says what holds, what does not, and what these files cannot show.
    """
    from maskaudit.command.verify import verify_files

    checks, closing = verify_files(Path(audit), model, sha256=sha256, **opening)
    for one in checks:
        _line(f"{'ok  ' if one.holds else 'FAIL'}  {one.name}: {one.detail}")
    _line(closing)
    entry.finish(0 if all(one.holds for one in checks) else 1)


@cli.command()
@click.argument("audit", metavar="AUDIT.JSON")
@click.option("-o", "outputs_to", multiple=True, required=True, metavar="FORMAT=PATH", help="What to write.")
def report(audit: str, outputs_to: tuple[str, ...]) -> None:
    """Render an old audit.json again."""
    from maskaudit.command.output import parse_outputs, write_outputs
    from maskaudit.report.reading import read_report

    wanted = parse_outputs(outputs_to, None)
    write_outputs(wanted, read_report(Path(audit)), None)
    for fmt, path in wanted:
        _line(f"{fmt:>9}: {path}")


@cli.command()
@click.option("--config", metavar="FILE", help="maskaudit.toml or pyproject.toml; the nearest one if not given.")
@shared("fail_on", default=None, help="For all models, whatever the configuration has.")
@shared("ray", help="Ray cluster that audits the models, all at once: auto, local or ray://head:10001.")
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=1, metavar="N", help="Models that are audited side by side."
)
@click.option("--cache", metavar="DIR", help="Folder of finished audits: what has not changed is not audited again.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON document.")
@click.option("-o", "outputs_to", multiple=True, metavar="FORMAT=PATH",
              help="Write the summary as html, json, md, text, sarif or junit.")  # fmt: skip
@click.option("--out", metavar="DIR", help="Write the summary, and a folder with the reports of each model.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def gate(
    config: str | None, fail_on: str | None, ray: str | None, jobs: int, cache: str | None, as_json: bool,
    outputs_to: tuple[str, ...], out: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Check all models and claims of [tool.maskaudit]: one summary, one exit status.

    The status is that of the worst model: 4 failed, 2 refused, 1 a finding, 3 inconclusive, 0.
    """
    from maskaudit.gate.config import find_config, read_config

    settings = read_config(Path(config) if config is not None else find_config(Path.cwd()), fail_on=fail_on)

    from maskaudit.command.results_out import announce  # from here on torch is loaded
    from maskaudit.command.terminal import ProgressLine, say, use_colour
    from maskaudit.gate.output import audited, wanted_files, write_summaries
    from maskaudit.gate.running import run_gate
    from maskaudit.gate.summary import build, markdown, text
    from maskaudit.results import dump_json

    folder = Path(out).absolute() if out else None
    wanted = wanted_files(outputs_to, folder, as_json=as_json)
    progress = ProgressLine(quiet=quiet)
    try:
        isolate = entry.Session.current().isolates
        result = run_gate(
            settings, out=folder, on_event=progress, isolate=isolate, ray=ray or "", jobs=jobs,
            cache=Path(cache).absolute() if cache else None,
        )  # fmt: skip
    except KeyboardInterrupt as request:
        kept = (
            f"; the reports of finished models are in {out}" if out else ". With --out DIR, finished reports are kept"
        )
        status = 128 + getattr(request, "signum", signal.SIGINT)
        entry.finish(entry.refuse(f"Interrupted{kept}.", status, as_json=as_json))
    progress.close()
    summary = build(result)
    unwritten = write_summaries(wanted, result, summary)
    say(dump_json(summary) if as_json else text(summary, color=use_colour(streams.out())), streams.out())
    announce(audited(result), markdown(summary), streams.err() if as_json else streams.out())
    if unwritten:
        say(f"maskaudit: {unwritten}\n", streams.err())
    entry.finish(result.status or (UNWRITTEN_STATUS if unwritten else 0))


@cli.command()
@click.argument("first", metavar="A.JSON")
@click.argument("second", metavar="B.JSON")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON document.")
def compare(first: str, second: str, as_json: bool) -> None:
    """Say what changed between two audits of the same data, paired where the points are the same."""
    from maskaudit.command.compare import compare_files, text
    from maskaudit.command.terminal import say
    from maskaudit.results import dump_json

    comparison = compare_files(Path(first), Path(second))
    say(dump_json(comparison) if as_json else text(comparison), streams.out())


@cli.command()
def probes() -> None:
    """List the probes and attacks that an audit runs."""
    from maskaudit.command.rules import list_rules

    for kind, name, title in list_rules():
        _line(f"{kind:<7} {name:<30} {title}")


@cli.command()
@click.argument("rule")
def explain(rule: str) -> None:
    """Explain a probe (raised when, what it means, what to do), an attack, or a mechanism that a verdict names."""
    from maskaudit.command.rules import explain_rule

    _line(explain_rule(rule))


@cli.group()
def zoo() -> None:
    """Models whose truth is known."""


@zoo.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def zoo_list(as_json: bool) -> None:
    """List the models with their truth: masked or not, at which level, by what and where, best known accuracy."""
    from maskaudit.command.zoo import list_zoo, zoo_table

    rows = list_zoo()
    _line(json.dumps(rows, indent=1) if as_json else "\n".join(zoo_table(rows)))


@zoo.command("train")
@click.argument("names", nargs=-1)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def zoo_train(names: tuple[str, ...], quiet: bool) -> None:
    """Train (and cache) the networks behind NAMES, or behind the whole zoo; resumes where it stopped."""
    from maskaudit.command.terminal import ProgressLine
    from maskaudit.command.zoo import train_zoo

    progress = ProgressLine(quiet=quiet)
    for line in train_zoo(names):
        progress.line(line)


@zoo.command("check")
@click.argument("names", nargs=-1)
@shared("budget")
@shared("seed")
def zoo_check(names: tuple[str, ...], budget: str, seed: int) -> None:
    """Audit NAMES or the whole zoo and hold every verdict against the truth; status 1 when one is wrong.

    Label, mechanism, location, and best known accuracy (at most one point above the established one, as far as the
    number of points can tell, and never below a certificate) all have to be right.
    """
    from maskaudit.command.zoo import check_zoo

    wrong = 0
    for line, right in check_zoo(names, budget=budget, seed=seed):
        _line(line)
        wrong += not right
    entry.finish(1 if wrong else 0)


@zoo.command("truth")
@click.argument("names", nargs=-1)
@click.option("--out", metavar="FILE", help="Where the records are kept; those of the program itself if not given.")
def zoo_truth(names: tuple[str, ...], out: str | None) -> None:
    """Establish what is known of NAMES, or of the whole zoo, by attacking through the mask, and record it.

    For developers: half a minute per model on the digits, two on Fashion-MNIST. Models whose record is up to date
    are left alone.
    """
    from maskaudit.command.zoo import establish_truths
    from maskaudit.zoo.truth import TRUTH_FILE

    for line in establish_truths(names, Path(out) if out else TRUTH_FILE):
        _line(line)


for _command in (*cli.commands.values(), *zoo.commands.values()):  # click keeps the help option of the first context
    _command.context_settings.update(CONTEXT)


if __name__ == "__main__":
    main()
