"""The trainer: deterministic, without side effects, interruptible, resumable; and the file it leaves."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaudit.data import Dataset, load_data
from maskaudit.errors import InputError, ModelError, UsageError
from maskaudit.loading import read_metadata
from maskaudit.sources import load_model
from maskaudit.threat import ThreatModel
from maskaudit.train import TrainConfig, TrainEvent, TrainingInterrupted, partial_path, save_trained, train
from maskaudit.train.loop import accuracy

#: Batch normalisation has state, pgd-at draws noise, great+ce and distill have auxiliary networks.
TRICKY = TrainConfig(method="great+ce", model="small_cnn(width=4, batch_norm=True)", epochs=4, alpha=0.1, beta=0.1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    full = load_data("digits", split="train")
    return replace(full, x=full.x[:150], y=full.y[:150])


def _same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


class _InterruptAfter:
    """A listener that presses Ctrl-C after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def __call__(self, event: TrainEvent) -> None:
        if event.epoch == self.epochs:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["great+ce", "pgd-at", "distill"])
def test_interrupted_and_resumed_equals_uninterrupted(method: str, digits: Dataset, tmp_path: Path) -> None:
    config = replace(TRICKY, method=method, attack_steps=2)
    straight = train(config, data=digits)
    out = tmp_path / "model.safetensors"
    with pytest.raises(TrainingInterrupted, match="--resume") as caught:
        train(config, data=digits, out=out, on_event=_InterruptAfter(2))
    assert isinstance(caught.value, KeyboardInterrupt)
    assert partial_path(out).name in str(caught.value)
    assert not out.exists()
    events: list[TrainEvent] = []
    resumed = train(config, data=digits, out=out, on_event=events.append, resume=True)
    assert events[0].epoch == 3
    assert _same(straight, resumed)
    save_trained(out, resumed, config, data=digits)
    assert list(tmp_path.iterdir()) == [out]


def test_a_finished_run_is_taken_up_without_training_again(digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "m"
    events: list[TrainEvent] = []
    first = train(TRICKY, data=digits, out=out)
    again = train(TRICKY, data=digits, out=out, resume=True, on_event=events.append)
    assert events == []
    assert _same(first, again)
    assert not again.training


def test_without_resume_the_run_starts_anew(digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "m"
    with pytest.raises(TrainingInterrupted):
        train(TRICKY, data=digits, out=out, on_event=_InterruptAfter(1))
    events: list[TrainEvent] = []
    train(TRICKY, data=digits, out=out, on_event=events.append)
    assert [event.epoch for event in events] == [1, 2, 3, 4]


def test_a_run_with_other_settings_is_not_taken_up(digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "m"
    with pytest.raises(TrainingInterrupted):
        train(TRICKY, data=digits, out=out, on_event=_InterruptAfter(1))
    with pytest.raises(UsageError, match="seed=0, not seed=1"):
        train(replace(TRICKY, seed=1), data=digits, out=out, resume=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a checkpoint", b"garbage"])
def test_a_damaged_progress_file_is_refused(content: bytes, digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "m"
    partial_path(out).write_bytes(content)
    with pytest.raises(InputError, match="without --resume"):
        train(TRICKY, data=digits, out=out, resume=True)


SPOILT = [
    {"settings": 1}, {"epoch": "1"}, {"epoch": -1}, {"model": {}}, {"model": 7}, {"auxiliary": {"a": torch.ones(1)}},
    {"optimizer": {}},
]  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT, ids=str)
def test_progress_of_another_kind_is_refused(spoilt: dict[str, object], digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "m"
    with pytest.raises(TrainingInterrupted):
        train(TRICKY, data=digits, out=out, on_event=_InterruptAfter(1))
    torch.save({**torch.load(partial_path(out)), **spoilt}, partial_path(out))
    with pytest.raises(InputError, match="without --resume"):
        train(TRICKY, data=digits, out=out, resume=True)


def test_progress_that_cannot_be_kept_is_reported_at_once(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        train(TRICKY, data=digits, out=tmp_path / "missing" / "m")


def test_interruption_without_a_file_says_that_nothing_was_kept(digits: Dataset) -> None:
    with pytest.raises(TrainingInterrupted, match="nothing was kept"):
        train(TRICKY, data=digits, on_event=_InterruptAfter(1))


def test_deterministic_whatever_the_callers_state_which_is_kept(digits: Dataset) -> None:
    threads = torch.get_num_threads()
    assert TRICKY.threads == 1
    torch.set_num_threads(2)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        expected = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[union-attr]
        with torch.no_grad():
            models.append(train(TRICKY, data=digits))
        assert torch.equal(torch.get_rng_state(), expected[0])
        assert np.random.get_state()[1].tolist() == expected[1]  # type: ignore[union-attr]
        assert random.getstate() == expected[2]
        assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert _same(*models)
    assert not _same(models[0], train(replace(TRICKY, seed=1), data=digits))


def test_state_is_restored_after_a_failure_too(digits: Dataset) -> None:
    def fail(event: TrainEvent) -> None:
        assert torch.get_num_threads() == 2
        raise RuntimeError("listener")

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="listener"):
        train(replace(TRICKY, threads=2), data=digits, on_event=fail)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_events_count_up_and_report_the_models_accuracy(digits: Dataset) -> None:
    events: list[TrainEvent] = []
    model = train(replace(TRICKY, method="distill", epochs=3), data=digits, on_event=events.append)
    assert [event.epoch for event in events] == [1, 2, 3, 4, 5, 6]
    assert {event.epochs for event in events} == {6}
    assert events[-1].eta_seconds == 0
    assert all(event.eta_seconds > 0 for event in events[:-1])
    assert [event.seconds for event in events] == sorted(event.seconds for event in events)
    assert events[-1].accuracy == accuracy(model, digits.x, digits.y)
    assert len({event.logit_scale for event in events}) == 6, "first of the teacher, which learns, then of the student"


def test_a_loss_that_is_not_finite_stops_with_a_sentence(digits: Dataset) -> None:
    with pytest.raises(ModelError, match=r"epoch \d+ of 40: the loss became (nan|-?inf)"):
        train(TrainConfig(epochs=40, lr=1e30), data=digits)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("attack_steps", 0),
        ("threads", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("temperature", -1.0),
        ("alpha", -1.0),
        ("beta", float("inf")),
        ("trades_beta", -0.1),
    ],
)
def test_settings_out_of_range_are_named(setting: str, value: float) -> None:
    with pytest.raises(UsageError, match=setting):
        TrainConfig(**{setting: value})  # type: ignore[arg-type]


def test_the_saved_file_brings_everything_check_needs(digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    threat = ThreatModel("L2", 0.5, (0.0, 1.0))
    config = TrainConfig(method="standard", epochs=2, seed=3, threat=threat, model="small_cnn(width=4)")
    model = train(config, data=digits)
    written = save_trained(out, model, config, data=digits)
    assert read_metadata(out) == written
    assert written["arch"] == "small_cnn(in_channels=1, size=8, num_classes=10, width=4)"
    assert written["data"] == "digits"
    assert written["threat"] == {"norm": "L2", "eps": 0.5, "bounds": [0.0, 1.0]}
    assert (written["outputs"], written["method"], written["epochs"], written["seed"]) == ("logits", "standard", 2, 3)
    assert written["train_accuracy"] == accuracy(model, digits.x, digits.y)
    loaded = load_model(str(out)).module
    expected: Tensor = model(digits.x)
    torch.testing.assert_close(loaded(digits.x), expected, rtol=0, atol=0)


def test_the_default_threat_of_digits_is_linf_one_fifth(digits: Dataset, tmp_path: Path) -> None:
    config = TrainConfig(epochs=1)
    written = save_trained(tmp_path / "m", train(config, data=digits), config, data=digits)
    assert written["threat"] == {"norm": "Linf", "eps": 0.2, "bounds": [0.0, 1.0]}


def test_an_architecture_of_the_users_own_is_built_and_named(digits: Dataset, tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text("from torch import nn\ndef make(k):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, k))\n")
    config = TrainConfig(model=f"{source}:make(k=10)", epochs=1)
    model = train(config, data=digits)
    out = tmp_path / "m.safetensors"
    assert save_trained(out, model, config, data=digits)["arch"] == config.model
    assert load_model(str(out), arch=config.model).parameters == 650


def test_vectors_get_a_fully_connected_network() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 5, generator=generator)
    y = (x[:, 0] > 0.5).long()
    data = Dataset("toy", x, y, 2, (0.0, 1.0))
    for method in ("pgd-at", "great+ce"):
        model = train(TrainConfig(method=method, epochs=2), data=data)
        assert model(x).shape == (60, 2)
