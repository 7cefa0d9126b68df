"""Models of collections, by name: `hf:ID` (Hugging Face transformers) and `robustbench:NAME` (RobustBench)."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from maskaudit.errors import InputError, UsageError, printable
from maskaudit.loading import file_metadata, hf_config, network
from maskaudit.loading.interface import Contents
from maskaudit.loading.named import import_package, pretrained

#: RobustBench's ε per data set and norm (Croce et al. 2021, RobustBench, section 3), and where its test data are.
ROBUSTBENCH_EPS = {
    ("cifar10", "Linf"): 8 / 255, ("cifar10", "L2"): 0.5, ("cifar100", "Linf"): 8 / 255, ("imagenet", "Linf"): 4 / 255,
}  # fmt: skip
ROBUSTBENCH_DATA = {"cifar10": "torchvision:CIFAR10", "cifar100": "torchvision:CIFAR100"}
#: The note on every audio model.
AUDIO = "The model takes recordings as its feature extractor leaves them: give points that have been through it."


def read_hf(name: str) -> Contents:
    """`hf:ID` or `hf:FOLDER`: a classifier of images, with its processor's normalisation, or of audio, of transformers.

    Code that comes with a model is never run.

    Raises:
        InputError: without the package, for a model that is not available or of another kind, or weights that lack.
    """
    with network.briefly("hf"):
        import_package("hf", name, "transformers")
        lacking: list[str] = []
        kinds: list[str] = []

        def make() -> object:
            config, kind = hf_config.classifier(name)
            model, info = hf_config.auto_class(kind).from_pretrained(
                name, config=config, trust_remote_code=False, output_loading_info=True
            )
            lacking.extend(sorted(map(str, info.get("missing_keys", ()))))
            kinds.append(kind)
            return model

        contents = pretrained("hf", name, make)
        if lacking:
            raise InputError(
                f"hf:{name} is not a trained classifier: {len(lacking)} of its weights are not in the file "
                f"({printable(', '.join(lacking[:3]), 100)}); name a model that was trained to classify."
            )
        if kinds != ["Image"]:
            return replace(contents, notes=(AUDIO,))
        processor = _processor(name)
    metadata: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if processor.get("do_normalize", True) and processor.get("image_mean") and processor.get("image_std"):
        normalisation = {key: processor[f"image_{key}"] for key in ("mean", "std")}
        metadata = file_metadata.check(normalisation, f"The image processor of hf:{printable(name)}")
        notes = ("Mean and deviation are those of the model's own image processor, for inputs in 0 to 1.",)
    else:
        notes = ("The model names no normalisation: give --mean and --std if it was trained with one.",)
    return replace(contents, metadata=metadata, notes=notes)


def read_robustbench(name: str) -> Contents:
    """`robustbench:NAME` or `robustbench:DATASET/NORM/NAME`, e.g. `cifar10/L2/Engstrom2019Robustness`.

    Without data set and norm, CIFAR-10 is meant, and the first of Linf and L2 that has the name.

    Raises:
        UsageError: for another form, or a name that RobustBench does not have.
        InputError: without the package, or when the weights are not available.
    """
    utils = import_package("robustbench", name, "robustbench.utils")
    dataset, norm, short = _robustbench_name(name)
    contents = pretrained(
        "robustbench", name, lambda: utils.load_model(model_name=short, dataset=dataset, threat_model=norm)
    )
    metadata: dict[str, Any] = {}
    if (dataset, norm) in ROBUSTBENCH_EPS:
        metadata["threat"] = {"norm": norm, "eps": ROBUSTBENCH_EPS[dataset, norm], "bounds": [0, 1]}
    if dataset in ROBUSTBENCH_DATA:
        metadata["data"] = ROBUSTBENCH_DATA[dataset]
    return replace(contents, metadata=metadata, notes=(f"RobustBench lists it under {dataset}, {norm}.",))


def _robustbench_name(name: str) -> tuple[str, str, str]:
    """Data set, norm and model."""
    parts = name.split("/")
    if len(parts) not in (1, 3) or not all(parts):
        raise UsageError(f"robustbench:{name} is not a name; write robustbench:NAME or robustbench:cifar10/Linf/NAME.")
    zoo = import_package("robustbench", name, "robustbench.model_zoo").model_dicts
    listed = {
        (_value(dataset), _value(norm)): {str(known) for known in models}
        for dataset, norms in zoo.items()
        for norm, models in norms.items()
    }
    places = [(parts[0], parts[1])] if len(parts) == 3 else [("cifar10", "Linf"), ("cifar10", "L2")]
    for place in places:
        if parts[-1] in listed.get(place, ()):
            return (*place, parts[-1])
    raise UsageError(
        f"RobustBench has no model {printable(parts[-1], 60)!r} under {' or '.join('/'.join(p) for p in places)}; "
        f"it has {', '.join(sorted('/'.join(place) for place in listed))}, each with its own names."
    )


def _value(key: Any) -> str:
    """RobustBench's keys are enumerations."""
    return str(getattr(key, "value", key))


def _processor(name: str) -> dict[str, Any]:
    """The model's image processor as it is written down; empty if it has none."""
    base = importlib.import_module("transformers.image_processing_base").ImageProcessingMixin
    try:
        found, _ = base.get_image_processor_dict(name)
    except Exception:  # no such file, or no network for it: the report then says that there is none
        return {}
    return dict(found)
