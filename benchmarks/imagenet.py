"""What does an audit of a network of the size of ImageNet take: time, memory, and a report that can be read?

    OMP_NUM_THREADS=1 python benchmarks/imagenet.py [--only NAME …] [--budget quick]     with the extra `families`

No weights and no images of ImageNet are at hand. The networks are those of torchvision and timm at 224 × 224 with
1,000 classes and random weights, their batch normalisation set from the images and their last layer fitted to them by
least squares: ordinary networks without any robustness, and a twin whose input is rounded. The images are noise with
the spectrum of natural images (amplitude 1/f: Field 1987). So accuracy says nothing here; price, memory, verdict and
the size of the report do. Finished runs are lines of `imagenet.jsonl`, the table is `imagenet.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.published import checked
from benchmarks.records import Record, RecordFile, commit, machine
from maskaudit.loading.arch import build
from maskaudit.zoo.masks.inputs import QuantisedInput

HERE = Path(__file__).resolve().parent
#: Points, side of an image, classes.
POINTS, SIDE, CLASSES = 192, 224, 1000
#: What the score that is right is above the others, noise of variance 1, in what the last layer is fitted to.
MARGIN = 10.0
LEVELS = 8
#: Network, and whether its input is rounded to `LEVELS` levels.
SUBJECTS = {
    "mobilenet_v3_small": ("torchvision:mobilenet_v3_small", False),
    "mobilenet_v3_small, rounded input": ("torchvision:mobilenet_v3_small", True),
    "resnet18": ("torchvision:resnet18", False),
    "vit_tiny": ("timm:vit_tiny_patch16_224", False),
    "convnext_atto": ("timm:convnext_atto", False),
    "resnet50": ("torchvision:resnet50", False),
}


def images() -> Tensor:
    """Images (POINTS, 3, SIDE, SIDE), uint8: noise with amplitude 1/f, the channels alike for the most part."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.fft.fftfreq(SIDE)[:, None].square() + torch.fft.rfftfreq(SIDE).square()
    amplitude = 1 / frequency.sqrt().clamp(min=1 / SIDE)
    noise = torch.randn(POINTS, 4, SIDE, SIDE, generator=generator)
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(SIDE, SIDE))
    smooth = smooth / smooth.std(dim=(2, 3), keepdim=True)
    return ((0.5 + 0.2 * smooth[:, :1] + 0.07 * smooth[:, 1:]).clamp(0, 1) * 255).round().to(torch.uint8)


def labels() -> Tensor:
    """One class for each image (POINTS,), spread over all."""
    return torch.randperm(CLASSES, generator=torch.Generator().manual_seed(1))[:POINTS]


def fitted(module: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """A network with batch normalisation set from images (N, …) and its last layer fitted to labels (N,)."""
    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    for one in norms:
        one.momentum = None
    module.train()
    with torch.no_grad():
        module(x[:64])
    module.eval()
    last = [one for one in module.modules() if isinstance(one, nn.Linear) and one.out_features == CLASSES][-1]
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    with torch.no_grad():
        for part in x.split(16):
            module(part)
        hook.remove()
        features = torch.cat(seen).double()
        mean = features.mean(0)
        noise = torch.randn(len(y), CLASSES, generator=torch.Generator().manual_seed(2))
        wanted = noise.double() + MARGIN * nn.functional.one_hot(y, CLASSES)
        weight = torch.linalg.lstsq(features - mean, wanted, driver="gelsd").solution
        last.weight.copy_(weight.T)
        last.bias.copy_(-weight.T @ mean)
    return module


def made(spec: str, rounded: bool, folder: Path) -> list[str]:
    """Weights and points in files of `folder`; the words of the command that audits them."""
    torch.manual_seed(0)
    pixels, y = images(), labels()
    x = pixels / 255
    network = fitted(build(spec), QuantisedInput(nn.Identity(), LEVELS)(x) if rounded else x, y)
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    np.savez(folder / "points.npz", x=pixels.numpy(), y=y.numpy(), num_classes=CLASSES)
    arch = f"benchmarks.imagenet:rounded(spec='{spec}')" if rounded else spec
    return [
        str(folder / "weights.safetensors"), "--arch", arch, "--data", str(folder / "points.npz"),
        "--bounds", "0,1", "--eps", "4/255",
    ]  # fmt: skip


def rounded(spec: str) -> nn.Module:
    """A network behind an input that is rounded to `LEVELS` levels."""
    return QuantisedInput(build(spec), LEVELS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--budget", default="quick", choices=["quick", "standard", "thorough"])
    parser.add_argument("--render", action="store_true", help="write the table from the kept runs alone")
    parser.add_argument("--kept", type=Path, help="keep the reports in this folder")
    parser.add_argument("--records", type=Path, default=HERE / "imagenet.jsonl")
    asked = parser.parse_args(arguments)
    file = RecordFile(asked.records)
    for name in () if asked.render else asked.only:
        if not any((r["model"], r["budget"]) == (name, asked.budget) for r in file.read()):
            record = {"model": name, "budget": asked.budget, "commit": commit(), "machine": machine()}
            file.append(record | audited(name, asked.budget, asked.kept))
    (HERE / "imagenet.md").write_text(render(file.read()), encoding="utf-8")


def audited(name: str, budget: str, kept: Path | None) -> Record:
    """What an audit by the command line says, and what it takes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        out = (kept or folder) / name.replace(", ", "-").replace(" ", "-")
        document, cost = checked([*made(*SUBJECTS[name], folder), "--budget", budget], out)
        sizes = {one.name: one.stat().st_size for one in out.iterdir()}
    timing = document["timing"]
    return {
        "label": document["verdict"]["label"], "mechanisms": [m["id"] for m in document["verdict"]["mechanisms"]],
        "points": len(document["points"]["index"]), "parameters": document["target"]["parameters"],
        "forwards": timing["forwards"], "backwards": timing["backwards"], "peak": timing["peak_memory"],
        "html": sizes["report.html"], "json": sizes["audit.json"], "evidence": sum(
            size for file, size in sizes.items() if file.endswith(".safetensors")
        ), **cost,
    }  # fmt: skip


def render(records: Sequence[Record]) -> str:
    """The table."""
    newest = {(r["model"], r["budget"]): r for r in records}
    commits, machines = (", ".join(sorted({r[field] for r in records})) for field in ("commit", "machine"))
    lines = [
        "# Networks of the size of ImageNet", "",
        f"`python benchmarks/imagenet.py`: {SIDE} × {SIDE}, {CLASSES:,} classes, {POINTS} points offered, ε = 4/255, "
        "random weights with a fitted last layer: ordinary networks without robustness, so that the verdict is to be "
        f"`clear`, and `masked` where the input is rounded to {LEVELS} levels. One thread each. Made at commit "
        f"{commits} on {machines}.", "",
        "| network | parameters | budget | verdict | mechanisms | points | passes | CPU s | per pass, ms | peak memory "
        "| report | audit.json | evidence |", "|---" * 13 + "|",
    ]  # fmt: skip
    return "\n".join([*lines, *(_row(*key, record) for key, record in newest.items())]) + "\n"


def _row(name: str, budget: str, r: Record) -> str:
    passes = r["forwards"] + r["backwards"]
    sizes = (f"{r[what] / 2**20:.1f} MiB" for what in ("html", "json", "evidence"))
    cells = [
        name, f"{r['parameters'] / 1e6:.1f} M", budget, f"**{r['label']}**", "; ".join(r["mechanisms"]),
        str(r["points"]), f"{passes:,}", f"{r['cpu_seconds']:,.0f}", f"{1000 * r['cpu_seconds'] / passes:.0f}",
        f"{r['peak'] / 2**20:,.0f} MiB", *sizes,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
