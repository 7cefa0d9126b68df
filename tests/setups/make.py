"""Make the files of `files/` with the tools that people use; run by hand, never by the tests.

    pip install pytorch-lightning scikit-learn skl2onnx keras onnxruntime xgboost peft torchao
    python tests/setups/make.py [NAME …]

All are trained on the 8 × 8 digits of scikit-learn, the embedded data, for as little as is needed to be better than
chance. The files are small, and say which versions made them in `files/made.json`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from maskaudit.data import load_data
from maskaudit.loading.vision import ready_torchvision
from tests.setups import nets

FILES = Path(__file__).resolve().parent / "files"


def digits() -> tuple[Tensor, Tensor]:
    """Training images (N, 1, 8, 8) in 0 to 1, and labels."""
    data = load_data("digits", split="train", bounds=(0.0, 1.0))
    return data.x, data.y


def fit(model: nn.Module, x: Tensor, y: Tensor, steps: int = 150) -> nn.Module:
    """Train a little."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        out = model(x[rows])
        loss = F.cross_entropy(out, y[rows]) if out.dim() == 2 else F.binary_cross_entropy_with_logits(out, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def lightning() -> None:
    """`Trainer` writes `last.ckpt`: the network under `net.`, a metric, the optimizer's state, hyper-parameters."""
    pl = importlib.import_module("pytorch_lightning")
    x, y = digits()

    class Classifier(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nets.cnn(width)
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(10))

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            loss: Tensor = self.criterion(self.net(batch[0]), batch[1])
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 64, shuffle=True)
    trainer = pl.Trainer(max_epochs=4, logger=False, enable_checkpointing=False, accelerator="cpu",
                         enable_progress_bar=False)  # fmt: skip
    trainer.fit(Classifier(), loader)
    trainer.save_checkpoint(FILES / "lightning.ckpt")


def keras() -> None:
    """`model.export(format="onnx")`: channels last, softmax at the end."""
    tool = importlib.import_module("keras")
    x, y = digits()
    tool.utils.set_random_seed(0)
    layers = tool.layers
    model = tool.Sequential([
        layers.Input((8, 8, 1)), layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(2), layers.Flatten(),
        layers.Dropout(0.2), layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x.permute(0, 2, 3, 1).numpy(), y.numpy(), epochs=6, verbose=0)
    model.export(FILES / "keras.onnx", format="onnx", verbose=False)


def hospital() -> None:
    """A pipeline of scikit-learn as ONNX: labels and a table of probabilities, on a CSV file of five columns."""
    table = table_of_patients(1200)
    train = table[:1000]
    pipeline = importlib.import_module("sklearn.pipeline")
    scaler = importlib.import_module("sklearn.preprocessing").StandardScaler()
    mlp = importlib.import_module("sklearn.neural_network").MLPClassifier((16,), max_iter=400, random_state=0)
    model = pipeline.make_pipeline(scaler, mlp).fit(train[:, :-1].astype(np.float32), train[:, -1].astype(int))
    types = importlib.import_module("skl2onnx.common.data_types")
    converted = importlib.import_module("skl2onnx").convert_sklearn(
        model, initial_types=[("input", types.FloatTensorType([None, 5]))]
    )
    (FILES / "hospital.onnx").write_bytes(converted.SerializeToString())
    head = "age,pressure,smoker,ward,glucose,outcome"
    np.savetxt(FILES / "patients.csv", table[1000:], "%.6g", ",", header=head, comments="")


def table_of_patients(n: int) -> np.ndarray:
    """Age, blood pressure, smoker or not, ward (0 to 3), glucose, outcome: invented."""
    rng = np.random.default_rng(0)
    age, pressure = rng.integers(20, 90, n), rng.normal(130, 20, n).clip(80, 200)
    smoker, ward, glucose = rng.integers(0, 2, n), rng.integers(0, 4, n), rng.normal(100, 25, n).clip(50, 250)
    risk = (age - 55) / 15 + (pressure - 130) / 15 + smoker * 1.5 + (ward == 2) + (glucose - 100) / 25
    outcome = (risk + rng.normal(0, 0.5, n) > 0.9).astype(int)
    return np.column_stack([age, pressure, smoker, ward, glucose, outcome])


def quantised() -> None:
    """ONNX Runtime's static quantisation: QuantizeLinear and DequantizeLinear around every operator."""
    x, y = digits()
    plain = FILES / "plain.onnx"
    torch.onnx.export(
        fit(nets.cnn(8), x, y), (x[:1],), plain, dynamo=True, verbose=False, external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    tool = importlib.import_module("onnxruntime.quantization")
    session = importlib.import_module("onnx").load(plain)
    name = session.graph.input[0].name

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter([{name: x[:64].numpy()}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    tool.quantize_static(str(plain), str(FILES / "quantised.onnx"), Reader(), quant_format=tool.QuantFormat.QDQ)
    plain.unlink()


def torchscript() -> None:
    """Traced at one image, the batch size written into a reshape."""
    x, y = digits()
    model = fit(nets.cnn(8), x, y)

    class Baked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> Tensor:
            return self.model(image.reshape(1, 1, 8, 8)).reshape(1, 10)

    torch.jit.save(torch.jit.trace(Baked(), x[:1]), FILES / "traced.ts")


def compiled() -> None:
    """The state dict of `torch.compile(DataParallel(network))`, with its optimizer, as training scripts save it."""
    x, y = digits()
    model = fit(nets.cnn(8), x, y)
    wrapped = torch.compile(nn.DataParallel(model))
    torch.save({"epoch": 3, "model": wrapped.state_dict(), "best_acc1": 0.9}, FILES / "compiled.pt")


def one_logit() -> None:
    """A defect detector with a single output and BCE: is the digit even?"""
    x, y = digits()
    model = fit(nets.one_logit(), x, (y % 2 == 0).float())
    importlib.import_module("safetensors.torch").save_file(model.state_dict(), FILES / "one_logit.safetensors")
    held = load_data("digits", split="test", bounds=(0.0, 1.0))
    np.savez_compressed(FILES / "even.npz", x=held.x.numpy()[:200], y=(held.y[:200] % 2 == 0).long().numpy())


def signal() -> None:
    """A 1-d convolution over signals (N, C, L), in bfloat16."""
    x, y = digits()
    model = fit(nets.signal(), x.flatten(2), y)
    torch.save(model.bfloat16().state_dict(), FILES / "signal.pt")
    held = load_data("digits", split="test", bounds=(0.0, 1.0))
    np.savez_compressed(FILES / "signals.npz", x=held.x.flatten(2).numpy()[:200], y=held.y.numpy()[:200])


def hugging_face() -> None:
    """The folder that `save_pretrained` writes, with the configuration of its image processor."""
    tool = importlib.import_module("transformers")
    x, y = digits()
    config = tool.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10,
        downsample_in_first_stage=False, id2label={i: f"digit {i}" for i in range(10)},
    )  # fmt: skip
    model = tool.ResNetForImageClassification(config)

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> Tensor:
            scores: Tensor = self.model(image).logits
            return scores

    fit(Scores(), F.interpolate((x - 0.5) / 0.5, size=8), y)
    model.save_pretrained(FILES / "hugging_face")
    given = {
        "do_normalize": True,
        "image_mean": [0.5],
        "image_std": [0.5],
        "image_processor_type": "ConvNextImageProcessor",
    }
    (FILES / "hugging_face" / "preprocessor_config.json").write_text(json.dumps(given))


def lora() -> None:
    """A LoRA adapter of peft, merged into the network and saved as a state dict."""
    peft = importlib.import_module("peft")
    x, y = digits()
    adapted = peft.get_peft_model(nets.mlp(), peft.LoraConfig(r=4, target_modules=["0", "2"]))
    fit(adapted, x.flatten(1), y)
    torch.save(adapted.merge_and_unload().state_dict(), FILES / "lora.pt")


def forest() -> None:
    """Trees of XGBoost, in its own JSON."""
    tool = importlib.import_module("xgboost")
    x, y = digits()
    model = tool.XGBClassifier(n_estimators=8, max_depth=3).fit(x.flatten(1).numpy(), y.numpy())
    model.save_model(FILES / "forest.ubj")


MAKERS: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (lightning, keras, hospital, quantised, torchscript, compiled, one_logit, signal, hugging_face, lora,
                 forest)
}  # fmt: skip


def main() -> None:
    """Make all, or those that are named."""
    FILES.mkdir(exist_ok=True)
    ready_torchvision()
    for name in sys.argv[1:] or MAKERS:
        MAKERS[name]()
        print(name, flush=True)


if __name__ == "__main__":
    main()
