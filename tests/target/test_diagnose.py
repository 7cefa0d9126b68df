"""Data and options that do not fit the model: the cause is found by trying, and the sentence names its repair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.data import Dataset
from maskaudit.errors import InputError, UsageError
from maskaudit.settings import AuditSettings, Request
from maskaudit.target import Target
from maskaudit.target.diagnose import diagnose

torch.manual_seed(7)
X = torch.rand(128, 3, 6, 6)
LINEAR = nn.Linear(108, 6).requires_grad_(False)
LINEAR.bias -= LINEAR(X.flatten(1)).mean(0)  # every class comes up
QUICK = AuditSettings(budget="quick", samples=64, select=("pgd",))


def net(x: Tensor) -> Tensor:
    return 20 * LINEAR(x.flatten(1))


Y = net(X).argmax(1)
IMAGENET = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def denormalised(x: Tensor) -> Tensor:
    return net(x * IMAGENET[1] + IMAGENET[0])


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, dict[str, object], str]] = {
    "labels from one": (lambda x: torch.nn.functional.pad(net(x), (0, 1), value=-99), Y + 1, {}, "--first-label 1"),
    "a class for the background": (
        lambda x: torch.nn.functional.pad(net(x), (1, 0), value=-99), Y, {}, "--first-label -1",
    ),
    "inputs up to 255": (lambda x: net(x / 255), Y, {}, "--std 1/255"),
    "inputs from -1": (lambda x: net((x + 1) / 2), Y, {}, "--mean 0.5 --std 0.5"),
    "missing normalisation": (denormalised, Y, {}, "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
    "normalised twice": (net, Y, {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}, "no --mean and --std"),
    "swapped channels": (lambda x: net(x.flip(1)), Y, {}, "--swap-channels"),
    "swapped channels up to 255": (lambda x: net(x.flip(1) / 255), Y, {}, "--std 1/255 --swap-channels"),
    "channels last": (lambda x: net(x.reshape(-1, 6, 6, 3).permute(0, 3, 1, 2)), Y, {}, "--layout channels-last"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "y", "options", "option"), WRONG.values(), ids=WRONG)
def test_the_cause_is_found_and_its_option_repairs_it(
    model: Callable[[Tensor], Tensor], y: Tensor, options: dict[str, tuple[float, ...]], option: str
) -> None:
    with Target(model, **options) as target:  # type: ignore[arg-type]
        found = diagnose(target, X, y, AuditSettings(**options))  # type: ignore[arg-type]
        assert (target.mean, target.form.layout, target.form.swap) == (options.get("mean"), "as-is", False)
    assert found.remedy is not None
    assert found.remedy.option == option
    assert found.remedy.accuracy > 0.95
    assert f"with {option} it is" in found.sentence


@pytest.mark.parametrize(("factor", "told"), [(1.0, True), (0.001, False)])
def test_pixels_for_a_model_of_inputs_in_0_to_1_are_said_to_flatten_its_scores(factor: float, told: bool) -> None:
    def model(x: Tensor) -> Tensor:
        return factor * 20 * x.flatten(1) @ LINEAR.weight.T

    y = model(255 * X).argmax(1)
    with Target(model, bounds=(0.0, 255.0)) as target:
        found = diagnose(target, 255 * X, y, AuditSettings())
        assert ("If it was trained on inputs in 0 … 1, give --mean 0 --std 255" in found.sentence) is told
        assert (found.hopeless, found.remedy) == (False, None)
        assert not diagnose(target, 255 * X, y, AuditSettings(std=(1.0,))).sentence


def test_the_sentence_ends_the_audit_and_the_option_repairs_it() -> None:
    model, y, _, _ = WRONG["inputs up to 255"]
    data = Dataset("points", X, y, 6, (0.0, 1.0))
    with pytest.raises(InputError, match=r"clean points .* The model wants inputs in 0 … 255: with --std 1/255"):
        api.audit(model, data, eps=0.1, settings=QUICK)
    assert api.audit(model, data, eps=0.1, std=("1/255",), settings=QUICK).report.accuracy["clean"].value > 0.95  # type: ignore[union-attr]


def test_labels_from_one_without_an_output_for_the_last() -> None:
    data = Dataset("points", X, Y + 1, 7, (0.0, 1.0))
    with pytest.raises(InputError, match=r"from 1 to 6, .*give --first-label 1; 100% of"):
        api.audit(net, data, eps=0.1, settings=QUICK)
    assert api.audit(net, data, eps=0.1, first_label=1, settings=QUICK).report.accuracy["clean"].value == 1  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="--first-label 2 does not fit points: its labels begin at 1"):
        api.audit(net, data, eps=0.1, first_label=2, settings=QUICK)
    with pytest.raises(InputError, match=r"labels up to \d+ after --first-label -1, which do not fit"):
        api.audit(net, data, eps=0.1, first_label=-1, settings=QUICK)


@pytest.mark.parametrize("order", [(1, 0), (1, 2, 0), (0, 1, 2, 3, 5, 4), (5, 3, 4, 1, 2, 0)])
def test_classes_in_another_order_are_told_one_by_one(order: tuple[int, ...]) -> None:
    """Also where the model is sometimes wrong; the labels as they should be repair it."""
    k = len(order)
    found = Y % k
    found[::10] = (found[::10] + 1) % k
    y = torch.tensor(order).argsort()[Y % k]

    def model(x: Tensor) -> Tensor:
        return nn.functional.one_hot(found[: len(x)], k).float()

    with Target(model) as target:
        diagnosis = diagnose(target, X, y, AuditSettings(), labels_only=True)
    told = ", ".join(f"{label} as {answer}" for label, answer in enumerate(order) if label != answer)
    assert diagnosis.remedy is not None
    assert "in another order than the model: with the data's labels renumbered" in diagnosis.sentence
    assert f"renumbered ({told}) it is" in diagnosis.sentence
    assert diagnosis.remedy.accuracy == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("k", [2, 3, 10, 60])
def test_random_answers_show_no_order(k: int) -> None:
    numbers = torch.Generator().manual_seed(3)
    named = 0
    for _ in range(40):
        y, answers = torch.randint(0, k, (2, 128), generator=numbers)
        answers[torch.rand(128, generator=numbers) < 0.4] = 0  # some collapse onto one class
        shown = nn.functional.one_hot(answers, k).float()
        with Target(lambda x, shown=shown: shown[: len(x)]) as target:
            named += diagnose(target, X, y, AuditSettings(), labels_only=True).remedy is not None
    assert named <= 2


@pytest.mark.parametrize("classes", [1, 2])
def test_two_classes_the_wrong_way_round_end_the_audit(classes: int) -> None:
    middle = net(X)[:, :2].mean(0)

    def model(x: Tensor) -> Tensor:
        scores = net(x)[:, :2] - middle
        return scores if classes == 2 else scores[:, 1:] - scores[:, :1]

    scores = model(X)
    truth = scores.argmax(1) if classes == 2 else (scores[:, 0] > 0).long()
    with pytest.raises(InputError, match=r"Only 0 of 128 .* renumbered \(0 as 1, 1 as 0\) it is 100%"):
        api.audit(model, Dataset("points", X, 1 - truth, 2, (0.0, 1.0)), eps=0.1, settings=QUICK)


@pytest.mark.parametrize(
    ("labels_only", "tried"), [(True, "no other numbering of labels"), (False, "no other normalisation")]
)
def test_one_answer_for_all_is_told_and_only_what_was_tried(labels_only: bool, tried: str) -> None:
    y = torch.arange(128) % 4
    with Target(lambda x: torch.tensor([0.0, 0, 1, 0]).expand(len(x), 4) + 0 * x.flatten(1)[:, :1]) as target:
        sentence = diagnose(target, X, y, AuditSettings(), labels_only=labels_only).sentence
    assert sentence.startswith(
        "Only 32 of 128 clean points are classified correctly (every one is answered as class 2)"
    )
    assert tried in sentence


def test_a_hopeless_audit_stops_at_once_and_says_so() -> None:
    y = Y[torch.randperm(len(Y), generator=torch.Generator().manual_seed(0))]
    report = api.audit(net, Dataset("points", X, y, 6, (0.0, 1.0)), eps=0.1, settings=QUICK).report
    assert report.verdict.label == "inconclusive"
    assert not report.attacks
    assert any("no better than chance" in reason for reason in report.verdict.reasons)
    assert any("no better than chance" in note for note in report.notes)


@pytest.mark.parametrize("share", [0.6, 0.85])
def test_an_imperfect_model_is_left_in_peace(share: float) -> None:
    y = Y.clone()
    wrong = torch.rand(len(y), generator=torch.Generator().manual_seed(1)) > share
    y[wrong] = torch.randint(0, 6, (int(wrong.sum()),), generator=torch.Generator().manual_seed(2))
    with Target(net) as target:
        found = diagnose(target, X, y, AuditSettings())
    assert (found.remedy, found.hopeless, found.sentence) == (None, False, "")


@pytest.mark.parametrize(
    ("norm", "eps", "bounds", "says"),
    [
        ("Linf", 8, (0, 1), r"whole range 0 … 1 .* did you mean --eps 8/255\?"),
        ("Linf", 1, (0, 1), "whole range"),
        ("Linf", 300, (0, 255), "whole range 0 … 255"),
        ("L2", 11, (0, 1), "whole range"),
    ],
)
def test_a_ball_around_everything_is_refused(norm: str, eps: float, bounds: tuple[float, float], says: str) -> None:
    data = Dataset("points", X, Y, 6, (0.0, 1.0))
    if bounds != (0, 1):
        data = Dataset("points", X * 255, Y, 6, (0.0, 255.0))
    with pytest.raises(UsageError, match=says):
        api.audit(net, data, norm=norm, eps=eps, settings=QUICK)


@pytest.mark.parametrize(("norm", "eps", "warned"), [("Linf", 0.5, True), ("Linf", 0.45, False), ("L2", 6, True)])
def test_half_of_the_box_is_warned_of(norm: str, eps: float, warned: bool) -> None:
    request = Request.of("net", {"norm": norm, "eps": eps}, QUICK)
    prepared = api.prepare(request, loaded=api.in_memory(net), points=Dataset("points", X, Y, 6, (0.0, 1.0)))
    assert any(note.startswith("Warning: ε") for note in prepared.loaded.notes) is warned


@pytest.mark.parametrize(("gained", "named"), [(20, False), (60, True)])
def test_a_cause_explains_a_fair_part_of_what_is_wrong(gained: int, named: bool) -> None:
    y = torch.arange(128) % 10
    x = (torch.arange(128) / 128)[:, None].expand(128, 4)

    def model(inputs: Tensor) -> Tensor:
        scaled = bool(inputs.max() > 2)
        number = (inputs[:, 0] * 128 / (255 if scaled else 1)).round().long()
        right = number * 37 % 128 < 15 + gained * scaled
        return nn.functional.one_hot(torch.where(right, y[number], (y[number] * 7 + 3 + number // 10) % 10), 10) * 9.0

    with Target(model) as target:
        found = diagnose(target, x, y, AuditSettings())
    assert (found.remedy is not None and "255" in found.remedy.cause) == named, found
