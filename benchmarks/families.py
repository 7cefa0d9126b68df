"""Do the families of timm, torchvision and transformers open in every format, and is none of them accused?

    MASKAUDIT_EXTRAS=dev,families ./dev --version
    .venv/bin/python benchmarks/families.py --records FILE.jsonl    # goes on where it was stopped; writes families.md
    .venv/bin/python benchmarks/families.py --only timm:vit_tiny… --show

The smallest variant of each family, at a small input, with the random weights that the package gives it (seed 0), is
taken through four forms: weights with `--arch` (a folder for `hf:` where transformers is the package), TorchScript
traced at two points, `.pt2` exported for two points, and ONNX. Each is opened as `maskaudit check` would open it and
held against the network that it was made of, on other points: the largest difference of the scores, and of the
gradients of the margin, each as a share of the largest value. Then it is traced as `maskaudit inspect` does. What a
trace says against such a network is a false accusation. Every network runs in a process of its own, within limits of
time and memory. Cost is the time of a trace over that of one forward–backward pass on the points that it saw.

Status 1 where a committed claim no longer holds: a form that opens differs, or is accused.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.families_networks import NETWORKS, Network, transformers_model
from benchmarks.records import Record, RecordFile, commit, figures_of, machine
from maskaudit.auditing.inspection import inspect_model
from maskaudit.errors import MaskauditError
from maskaudit.loading import arch
from maskaudit.loading.vision import ready_torchvision
from maskaudit.sources import load_model
from maskaudit.target import Target

ANSWER = Path(__file__).resolve().parent / "families.md"
FORMS = ("eager", "torchscript", "pt2", "onnx")
#: Points that are traced, that the forms are compared on, and that an exporter sees.
POINTS, COMPARED, EXPORTED = 8, 2, 2
#: Largest difference that still is the same, as a share of the largest value.
SAME = 1e-4
#: Multiple of the rounding that the network itself shows between float32 and float64, where that is larger.
ROUNDING = 10
#: Networks of which a remark is right, and why.
TRUE = dict.fromkeys(
    (
        "timm:inception_v3(num_classes=10)",
        "torchvision:inception_v3(num_classes=10, init_weights=True, aux_logits=False)",
    ),
    "its random weights give scores of 10⁸: cross-entropy has no gradient",
) | {"hf:mobilevitv2": "its random weights give scores of 0, and gradients of 10⁻⁴⁵, the smallest number of float32"}
#: Seconds and bytes that one network may take.
LIMIT, MEMORY = 300, 6 * 2**30


def main() -> int:
    """Read the command line and try what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="finished runs; those are not repeated")
    parser.add_argument("--only", nargs="*", help="names, or beginnings of names, of networks")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=FORMS)
    parser.add_argument("--show", action="store_true", help="write no table")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import_packages()
    names = [name for name in NETWORKS if not arguments.only or name.startswith(tuple(arguments.only))]
    records = RecordFile(arguments.records) if arguments.records else None
    done: dict[str, Record] = {}
    for record in records.read() if records else []:
        join(done, record)
    for name in sorted(names, key=lambda name: done.get(name, {}).get("parameters", math.inf)):  # small ones first
        missing = [form for form in arguments.forms if form not in done.get(name, {"forms": ()})["forms"]]
        if missing:
            record = tried(name, missing)
            print(line(record), flush=True)
            join(done, record)
            if records:
                records.append(record)
    found = [done[name] for name in NETWORKS if name in done]
    if not arguments.show and not arguments.only:
        ANSWER.write_text(page(found), encoding="utf-8")
    return int(any(map(faults, found)))


def join(done: dict[str, Record], record: Record) -> None:
    """Add what was found on a network to what is known of it."""
    known = done.get(record["name"], {"forms": {}})
    done[record["name"]] = {**known, **record, "forms": known["forms"] | record["forms"]}


def import_packages() -> None:
    """Import what the networks need before processes are forked from this one, so that none waits for it."""
    ready_torchvision()
    for package in ("timm", "torchvision.models", "transformers", "onnxscript"):
        importlib.import_module(package)
    importlib.import_module("transformers").logging.set_verbosity_error()


def tried(name: str, forms: Sequence[str]) -> Record:
    """Some forms of one network, in a process of its own; one that ran out of time or memory has failed for good."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(NETWORKS[name], forms, sender.send), daemon=True)
    started = time.perf_counter()
    process.start()
    sender.close()
    record: Record = {"name": name, "machine": machine(), "commit": commit(), "forms": {}}
    why = f"not finished after {LIMIT} s"
    try:
        while receiver.poll(max(0.0, LIMIT - (time.perf_counter() - started))):
            entry = receiver.recv()
            if "form" in entry:
                record["forms"][entry.pop("form")] = entry
            else:
                record |= entry
    except EOFError:
        process.join()
        why = str(record.pop("reason", f"the process ended with status {process.exitcode}"))
    finally:
        process.kill()
        process.join()
        receiver.close()
    for form in forms:
        record["forms"].setdefault(form, {"export": why})
    return {**record, "seconds": round(time.perf_counter() - started, 1)}


def child(network: Network, forms: Iterable[str], send: Callable[[Record], None]) -> None:
    """Try the forms of a network, here: sends facts of the network, and one record for each form."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        made = built(network).eval()
        x = torch.rand(POINTS, *network.shape, generator=torch.Generator().manual_seed(1))
        scores, grad = answers(made, x[:COMPARED])
        noise = own_rounding(made, x[:COMPARED], scores, grad)
    except Exception as error:
        send({"reason": f"{type(error).__name__}: {error}".split("\n")[0][:200]})
        return
    send({"parameters": sum(p.numel() for p in made.parameters()), "noise": noise})
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        for form in forms:
            send({"form": form, **through(form, network, made, x, scores, grad, Path(folder))})


def through(
    form: str, network: Network, made: nn.Module, x: Tensor, scores: Tensor, grad: Tensor, folder: Path
) -> Record:
    """One form: exported, opened, compared, traced."""
    started = time.perf_counter()
    try:
        source, options = EXPORTERS[form](network, made, x[-EXPORTED:], folder)
    except BaseException as error:
        return {"export": f"{type(error).__name__}: {error}".split("\n")[0][:200]}
    taken = round(time.perf_counter() - started, 1)
    return {"export_seconds": taken, **opened(source, options, made, x, scores, grad)}


class Scores(nn.Module):
    """A network whose only answer is the tensor of scores."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, K)."""
        found = self.network(x)
        return getattr(found, "logits", found)


def built(network: Network) -> nn.Module:
    """The network with the weights that its package gives it."""
    if network.config is not None:
        return transformers_model(network)
    return arch.build(network.name)


def answers(model: Callable[[Tensor], Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores, and the gradient of first minus second score with respect to the input."""
    leaf = x.clone().requires_grad_()
    scores = model(leaf)
    scores = getattr(scores, "logits", scores)
    scores = scores[0] if isinstance(scores, (tuple, list)) else scores
    (grad,) = torch.autograd.grad((scores[:, 0] - scores[:, 1]).sum(), leaf)
    return scores.detach(), grad


def own_rounding(model: nn.Module, x: Tensor, scores: Tensor, grad: Tensor) -> list[float]:
    """How far float32 is from float64 in the network itself; zeros where it does not compute in float64."""
    try:
        exact = answers(model.double(), x.double())
        return [apart(scores, exact[0]), apart(grad, exact[1])]
    except Exception:
        return [0.0, 0.0]
    finally:
        model.float()


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    largest = max(float(theirs.abs().max()), 1e-30)
    return float(f"{float((ours.double() - theirs.double()).abs().max()) / largest:.2e}")


def in_float64(module: nn.Module, made: nn.Module, x: Tensor) -> Record:
    """The differences where rounding carries no unit over a kink; empty where either does not compute in float64."""
    try:
        ours, theirs = (answers(one.double(), x.double()) for one in (module, made))
        return {"scores": apart(ours[0], theirs[0]), "gradients": apart(ours[1], theirs[1]), "float64": True}
    except Exception:
        return {}
    finally:
        module.float()
        made.float()


def opened(source: str, options: dict[str, Any], made: nn.Module, x: Tensor, scores: Tensor, grad: Tensor) -> Record:
    """Open a form, hold it against the network, trace it."""
    started = time.perf_counter()
    try:
        loaded = load_model(source, **options)
    except MaskauditError as error:
        return {"refused": str(error)[:300]}
    entry: Record = {"load_seconds": round(time.perf_counter() - started, 1)}
    module = loaded.module
    assert isinstance(module, nn.Module)
    try:
        found = answers(module, x[: len(scores)])
        entry |= {"scores": apart(found[0], scores), "gradients": apart(found[1], grad)}
        if max(entry["scores"], entry["gradients"]) > SAME:
            entry |= in_float64(module, made, x[: len(scores)])
        with Target(module, bounds=(0.0, 1.0)) as target:
            y = target.predict(target.scores(x))
            started = time.perf_counter()
            target.value_and_grad(x, lambda out, rows: target.margin(out, y[rows]))
            once = time.perf_counter() - started
            started = time.perf_counter()
            seen = inspect_model(target, x, y)
            entry["cost"] = round((time.perf_counter() - started) / once, 1)
    except Exception as error:
        return {**entry, "failed": f"{type(error).__name__}: {error}".split("\n")[0][:300]}
    good = seen["sentence"].startswith(("Nothing hides", "The model gives all"))  # a head of zeros is none's fault
    return {**entry, "ops": seen["ops"], "accused": "" if good else seen["sentence"][:300]}


def as_weights(network: Network, made: nn.Module, x: Tensor, folder: Path) -> tuple[str, dict[str, Any]]:
    """A state dict and its SPEC; for transformers the folder that its `save_pretrained` writes."""
    if network.config is not None:
        made.save_pretrained(folder / "model")  # type: ignore[operator]
        return f"hf:{folder / 'model'}", {}
    torch.save(made.state_dict(), folder / "model.pt")
    return str(folder / "model.pt"), {"arch": network.name}


def as_torchscript(network: Network, made: nn.Module, x: Tensor, folder: Path) -> tuple[str, dict[str, Any]]:
    """Traced at the points."""
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(Scores(made), (x,), check_trace=False), folder / "model.ts")
    return str(folder / "model.ts"), {}


def as_pt2(network: Network, made: nn.Module, x: Tensor, folder: Path) -> tuple[str, dict[str, Any]]:
    """Exported for that number of points."""
    torch.export.save(torch.export.export(Scores(made), (x,)), folder / "model.pt2")
    return str(folder / "model.pt2"), {}


def as_onnx(network: Network, made: nn.Module, x: Tensor, folder: Path) -> tuple[str, dict[str, Any]]:
    """By torch's own exporter, for that number of points."""
    torch.onnx.export(Scores(made), (x,), folder / "model.onnx", dynamo=True, verbose=False, external_data=False)
    return str(folder / "model.onnx"), {}


EXPORTERS = {"eager": as_weights, "torchscript": as_torchscript, "pt2": as_pt2, "onnx": as_onnx}


def faults(record: Record) -> list[str]:
    """What is wrong with a network: forms that differ, fail or are accused, each named. Refusals are none."""
    found = []
    for form, entry in record["forms"].items():
        if entry.get("failed"):
            found.append(f"{form} fails: {entry['failed']}")
        if entry.get("accused") and record["name"] not in TRUE:
            found.append(f"{form} accused: {entry['accused']}")
        if any(differs(record, entry)):
            found.append(f"{form} differs: scores {entry['scores']}, gradients {entry['gradients']}")
    return found


def differs(record: Record, entry: Record) -> list[bool]:
    """Whether scores, and gradients, are others than the network's."""
    allowed = [max(SAME, ROUNDING * noise) for noise in record.get("noise", (0, 0))]
    return [entry.get(key, 0.0) > most for key, most in zip(("scores", "gradients"), allowed, strict=True)]


def line(record: Record) -> str:
    """A record for the terminal."""
    refused = [
        f"{form} {key}: {entry[key]}" for form, entry in record["forms"].items() for key in ("refused", "export")
        if entry.get(key)
    ]  # fmt: skip
    wrong = [*faults(record), *refused]
    return f"{record['name']} ({record.get('seconds', '?')} s): " + ("; ".join(wrong) or "right")


def page(records: list[Record]) -> str:
    """The table."""
    machines = "; ".join(sorted({record["machine"] for record in records}))
    lines = [
        "# Families of networks", "",
        f"Made by `python benchmarks/families.py` (its docstring says how); {machines}. "
        + figures_of(record.get("commit") for record in records), "",
        "In a cell: the largest difference of scores / gradients to the network itself, and the cost of a trace in "
        f"forward–backward passes. The same is up to {SAME:g}, or {ROUNDING} times the rounding of float32 in the "
        "network itself, whichever is larger (then the cell says so). What differs by more in float32, where rounding "
        "carries units over the kink of a ReLU, is compared in float64. – is not run yet.", "",
        *(f"The remark on {name} is right: {why}." for name, why in TRUE.items()), "",
    ]  # fmt: skip
    for package in dict.fromkeys(record["name"].partition(":")[0] for record in records):
        lines += [*section(package, [r for r in records if r["name"].startswith(package + ":")]), ""]
    return "\n".join(lines).rstrip() + "\n"


def section(package: str, records: list[Record]) -> list[str]:
    """One package."""
    counts = [
        f"{form}: {sum('ops' in r['forms'].get(form, {}) for r in records)} open and are traced, "
        f"{sum(bool(r['forms'].get(form, {}).get('accused')) for r in records)} accused, "
        f"{sum(any(differs(r, r['forms'].get(form, {}))) for r in records)} differ"
        for form in FORMS
    ]
    return [
        f"## {package} ({len(records)} networks)", "", *(f"- {count}" for count in counts), "",
        "| network | parameters | " + " | ".join(FORMS) + " |", "|---|---:|" + "---|" * len(FORMS),
        *(row(record) for record in records),
    ]  # fmt: skip


def row(record: Record) -> str:
    """One network."""
    cells = [cell(record, record["forms"].get(form)) for form in FORMS]
    return f"| {record['name']} | {record.get('parameters', 0) / 1e6:.2f} M | {' | '.join(cells)} |"


def cell(record: Record, entry: Record | None) -> str:
    """One form of one network."""
    if entry is None:
        return "–"
    for key, title in (("export", "not exported"), ("refused", "refused"), ("failed", "**fails**")):
        if entry.get(key):
            return f"{title}: {entry[key][:110]}".replace("|", "/").replace("\n", " ")
    figures = [f"{entry[key]:.0e}" for key in ("scores", "gradients")]
    own = [" (rounding)" if entry[key] > SAME else "" for key in ("scores", "gradients")]
    worst = ["**differs** " if bad else "" for bad in differs(record, entry)]
    parts = [worst[i] + figures[i] + ("" if worst[i] else own[i]) for i in range(2)]
    parts[1] += " in float64" if entry.get("float64") else ""
    accused = f", **{entry['accused'][:110]}**" if entry["accused"] else ""
    return f"{' / '.join(parts)}, × {entry['cost']:g}{accused}".replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
