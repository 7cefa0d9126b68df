"""What the options of `train` do: schedules, accumulation, augmentation, shares, precision, devices, pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from maskaudit import api
from maskaudit.cli import cli
from maskaudit.command.jobs import train_to_file
from maskaudit.data import Dataset, load_data
from maskaudit.errors import InputError, UsageError
from maskaudit.loading import read_metadata
from maskaudit.rng import PointRNG
from maskaudit.settings import TRAIN_OPTIONS, Request
from maskaudit.train import METHODS, TrainConfig, TrainEvent, TrainingInterrupted, share_of, train
from maskaudit.train.augmentation import augmented
from maskaudit.train.loop import batches_of


@pytest.fixture(scope="module")
def digits() -> Dataset:
    full = load_data("digits", split="train")
    return replace(full, x=full.x[:150], y=full.y[:150])


def _rng(n: int) -> PointRNG:
    return PointRNG.create(0, "test", torch.arange(n))


def _distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_a_batch_in_parts_is_the_same_step(digits: Dataset) -> None:
    config = TrainConfig(model="small_cnn(width=4)", epochs=2, batch_size=50)
    whole = train(config, data=digits)
    assert _distance(whole, train(replace(config, accumulate=3), data=digits)) < 1e-4
    assert _distance(whole, train(replace(config, batch_size=17), data=digits)) > 1e-3


def test_a_last_batch_of_one_point_joins_the_others_and_batch_normalisation_gets_a_sentence(digits: Dataset) -> None:
    assert [len(batch) for batch in batches_of(torch.arange(9), 4)] == [4, 5]
    assert [len(batch) for batch in batches_of(torch.arange(3), 1)] == [1, 1, 1]
    net = "resnet(width=2, blocks=(1, 1, 1, 1))"
    train(TrainConfig(model=net, epochs=1, batch_size=149), data=digits)
    with pytest.raises(UsageError, match=r"cannot learn from 1 points: .*more than 1 value per channel"):
        train(TrainConfig(model=net, epochs=1, batch_size=1), data=digits)


def test_half_precision_trains_to_other_weights_that_are_close(digits: Dataset) -> None:
    config = TrainConfig(model="small_cnn(width=4)", epochs=1, lr=1e-3)
    assert 0 < _distance(train(config, data=digits), train(replace(config, precision="bfloat16"), data=digits)) < 0.05


@pytest.mark.parametrize(("schedule", "last"), [("poly", 0.25**0.9), ("constant", 1.0)])
def test_the_step_size_follows_its_schedule(schedule: str, last: float, digits: Dataset) -> None:
    seen: list[float] = []
    watch = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    try:
        train(TrainConfig(model="mlp(hidden=2)", epochs=4, lr=0.5, schedule=schedule), data=digits)  # type: ignore[arg-type]
    finally:
        watch.remove()
    assert seen[0] == 0.5
    assert seen[-1] == pytest.approx(0.5 * last)


def test_crops_are_shifts_that_belong_to_point_and_epoch() -> None:
    x = torch.arange(1.0, 2 * 32 * 32 + 1).view(2, 1, 32, 32)
    crops = [augmented(x, "crop", _rng(2), step=step, fill=0.0) for step in range(40)]
    shifts = set()
    for crop in crops:
        row, column = divmod(int((crop[0, 0] == x[0, 0, 16, 16]).nonzero()[0] @ torch.tensor([32, 1])), 32)
        down, right = row - 16, column - 16
        rows, columns = slice(max(down, 0), 32 + min(down, 0)), slice(max(right, 0), 32 + min(right, 0))
        came = x[0, 0, slice(max(-down, 0), 32 + min(-down, 0)), slice(max(-right, 0), 32 + min(-right, 0))]
        assert torch.equal(crop[0, 0, rows, columns], came)
        assert int((crop[0] == 0).sum()) == 32 * 32 - came.numel()
        shifts.add((down, right))
    assert {max(map(abs, shift)) for shift in shifts} == {0, 1, 2, 3, 4} or len(shifts) > 20
    assert max(max(map(abs, shift)) for shift in shifts) == 4
    assert torch.equal(crops[7], augmented(x, "crop", _rng(2), step=7, fill=0.0))
    assert augmented(x, "none", _rng(2), step=0, fill=0.0) is x


def test_flips_mirror_about_half_of_the_points() -> None:
    x = torch.arange(8.0).expand(400, 1, 8, 8).contiguous() + 1
    flipped = augmented(x, "crop-flip", _rng(400), step=0, fill=0.0)
    falling = sum(bool(row[3] > row[4]) for row in flipped[:, 0, 4])
    assert 150 < falling < 250


def test_a_share_is_the_same_of_each_class_and_nested_in_the_data(digits: Dataset) -> None:
    some = share_of(digits, 0.2, seed=0)
    for label in range(10):
        assert int((some.y == label).sum()) == math.ceil(0.2 * int((digits.y == label).sum()))
    assert torch.equal(some.x, share_of(digits, 0.2, seed=0).x)
    assert not torch.equal(some.x, share_of(digits, 0.2, seed=1).x)


def test_a_device_that_is_not_here_is_one_sentence(digits: Dataset) -> None:
    with pytest.raises(UsageError, match="The device 'frobnicate' cannot be used here"):
        train(TrainConfig(epochs=1, device="frobnicate"), data=digits)
    train(TrainConfig(model="mlp(hidden=2)", epochs=1, device="auto"), data=digits)


@pytest.mark.heavy
def test_the_picture_shows_all_epochs_of_a_resumed_run(digits: Dataset, tmp_path: Path) -> None:
    def stop(event: TrainEvent) -> None:
        raise KeyboardInterrupt

    config = TrainConfig("great", model="small_cnn(width=2)", epochs=3)
    out, picture = tmp_path / "m", tmp_path / "course.svg"
    with pytest.raises(TrainingInterrupted):
        train(config, data=digits, out=out, picture=picture, on_event=stop)
    first = picture.read_text()
    train(config, data=digits, out=out, picture=picture, resume=True)
    resumed = picture.read_text()
    straight = tmp_path / "straight.svg"
    train(config, data=digits, picture=straight)
    assert first != resumed == straight.read_text()
    assert "<svg" in resumed


def test_a_picture_that_cannot_be_is_refused_first(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.svg"):
        train(TrainConfig(epochs=1), data=digits, picture=tmp_path / "course.gif")
    with pytest.raises(InputError, match="cannot be written"):
        train(TrainConfig(epochs=1), data=digits, picture=tmp_path / "missing" / "course.svg")


def test_events_tell_the_auxiliary_accuracy_and_the_logits(digits: Dataset) -> None:
    events: list[TrainEvent] = []
    model = train(TrainConfig("great", model="small_cnn(width=2)", epochs=1), data=digits, on_event=events.append)
    assert events[0].auxiliary_accuracy is not None
    assert 0 <= events[0].auxiliary_accuracy <= 1
    assert events[0].logit_scale == pytest.approx(model(digits.x).abs().amax(1).mean().item(), rel=1e-4)
    train(TrainConfig(model="small_cnn(width=2)", epochs=1), data=digits, on_event=events.append)
    assert events[1].auxiliary_accuracy is None


@pytest.mark.parametrize("method", METHODS)
def test_what_any_method_trains_opens_in_check_with_no_further_option(method: str, tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher.safetensors", tmp_path / "model.safetensors"
    small = {"fraction": 0.05, "epochs": 1, "model": "resnet(width=8, blocks=(1, 1))"}
    train_to_file("standard", out=teacher, quiet=True, **small)  # type: ignore[arg-type]
    options = {**small, "attack_steps": 1, **({"teacher": str(teacher)} if "distill" in method[-7:] else {})}
    train_to_file(method, out=out, quiet=True, **options)  # type: ignore[arg-type]
    prepared = api.prepare(Request(str(out)))
    assert prepared.data.name == "digits"
    assert prepared.threat.eps == 0.2


def test_the_command_line_hands_every_option_on(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    words = (
        "--model small_cnn(width=2) --epochs 1 --seed 3 --batch-size 32 --accumulate 2 --lr 1e-4 --schedule constant"
    )
    words += " --augment crop --fraction 0.1 --precision bfloat16 --alpha 0.5 --beta 0.25 --greace bounded"
    result = CliRunner().invoke(cli, ["train", "great+ce", "--out", str(out), "-q", *words.split()])
    assert result.exit_code == 0, result.output
    training = read_metadata(out)["training"]
    expected = {
        "epochs": 1, "seed": 3, "batch_size": 32, "accumulate": 2, "lr": 1e-4, "schedule": "constant",
        "augment": "crop", "fraction": 0.1,
        "precision": "bfloat16", "alpha": 0.5, "beta": 0.25, "greace": "bounded", "device": "cpu",
    }  # fmt: skip
    assert {key: training[key] for key in expected} == expected
    assert set(TRAIN_OPTIONS) <= set(training)


def test_the_help_names_every_method() -> None:
    shown = " ".join(CliRunner().invoke(cli, ["train", "--help"], terminal_width=400).output.split())
    assert [method for method in METHODS if method not in shown] == []
