"""Black boxes: recognised or stated, counted, kept to limits, and never called masked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.data import Dataset
from maskaudit.errors import ModelError, UsageError
from maskaudit.loading.blackbox import (
    BlackBox,
    QueriesSpentError,
    answering,
    boxed,
    computes_elsewhere,
    is_service,
    web,
)
from maskaudit.loading.blackbox.web import AUTHORIZATION, RETRIES, Service
from maskaudit.settings import BUDGETS, AuditSettings
from maskaudit.sources import load_model
from maskaudit.target import Target
from maskaudit.verdict.recount import recount

from .server import Orders, serving

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 3)).astype(np.float32)
POINTS = RNG.random((60, 6), dtype=np.float32)
LABELS = ((POINTS - 0.5) @ W).argmax(1)
X = torch.from_numpy(POINTS)
DATA = Dataset("points", X, torch.from_numpy(LABELS), 3, (0.0, 1.0))
QUICK = AuditSettings(budget="quick", samples=24, ignore=("transfer", "decision"))


def on_arrays(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if isinstance(x, Tensor):
        raise TypeError("arrays only")
    return 10 * (x.astype(np.float32) - 0.5) @ W


class Neighbours:
    """An estimator with the methods of scikit-learn: shares of votes of the nearest known points."""

    classes_ = np.arange(3)

    def get_params(self) -> dict[str, object]:
        return {}

    def predict_proba(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        distance = ((np.asarray(x)[:, None] - POINTS[None]) ** 2).sum(2)
        votes = LABELS[distance.argsort(1)[:, :5]]
        return (votes[:, :, None] == self.classes_).mean(1)

    def predict(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.predict_proba(x).argmax(1)


class Scored:
    """An estimator with a decision function; `Decided` has only its decisions."""

    classes_ = np.arange(3)

    def get_params(self) -> dict[str, object]:
        return {}

    def decision_function(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return on_arrays(x)

    def predict(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return on_arrays(x).argmax(1)


class Decided(Scored):
    decision_function = property()  # type: ignore[assignment]


FOREST = Neighbours()


class Session:
    """What ONNX Runtime offers, with the answers of a linear model."""

    class Value:
        def __init__(self, name: str) -> None:
            self.name, self.type = name, "tensor(double)"

    def get_inputs(self) -> list[Value]:
        return [self.Value("input")]

    def get_outputs(self) -> list[Value]:
        return [self.Value("label"), self.Value("probabilities")]

    def run(self, names: None, feed: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
        x = feed["input"]
        assert x.dtype == np.float64
        return [on_arrays(x).argmax(1), [dict(enumerate(row)) for row in on_arrays(x).tolist()]]


SERVICES: dict[str, tuple[Any, bool]] = {
    "a forest": (FOREST, True),
    "a decision function": (Scored(), True),
    "decisions": (Decided(), True),
    "a session": (Session(), True),
    "a function on arrays": (on_arrays, False),
    "a function on tensors": (lambda x: torch.from_numpy(on_arrays(x.numpy())), False),
    "a function that gives lists": (lambda x: on_arrays(np.asarray(x.tolist())).tolist(), False),
}


@pytest.mark.parametrize(("made", "service"), SERVICES.values(), ids=SERVICES)
def test_everything_that_answers_is_asked_in_its_own_way(made: Any, service: bool) -> None:
    assert is_service(made) is service
    assert computes_elsewhere(answering(made) if service else made, X[:2])
    box = BlackBox(answering(made))
    with Target(box) as target:
        predicted = target.raw(X).argmax(1).numpy()
    assert float((predicted == LABELS).mean()) > 0.8
    assert box.queries == len(X)


HERE: dict[str, Callable[[Tensor], Tensor]] = {
    "a module behind a function": lambda x: nn.functional.linear(x, torch.from_numpy(W.T)),
    "a gradient that was cut": lambda x: (x.detach() @ torch.from_numpy(W)).round(),
    "a failing function": lambda x: x.nothing,  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("model", HERE.values(), ids=HERE)
def test_what_computes_in_torch_is_no_black_box(model: Callable[[Tensor], Tensor]) -> None:
    assert not computes_elsewhere(model, X[:2])


def broken_on_tensors(x: Tensor) -> Tensor:
    raise FileNotFoundError(f"no weights for {x.detach().shape}")  # an array cannot be detached


def broken_on_arrays(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    raise FileNotFoundError(f"no weights for {on_arrays(x).shape}")


@pytest.mark.parametrize("function", [broken_on_tensors, broken_on_arrays])
def test_the_error_of_a_function_is_that_of_what_it_takes(function: Callable[[Any], Any]) -> None:
    with pytest.raises(FileNotFoundError, match="no weights for"):
        answering(function)(X)


@pytest.mark.parametrize(
    "model", [lambda x: torch.as_tensor(FOREST.predict_proba(x.numpy())).float(), FOREST.predict_proba]
)
def test_a_forest_is_never_masked(model: Callable[[Any], Any]) -> None:
    report = api.audit(model, DATA, eps=0.2, claim=0.99, settings=QUICK).report
    assert report.verdict.label == "inconclusive"
    assert "black box" in report.verdict.sentence
    assert report.claim.status == "refuted"
    assert report.accuracy["best_known"].value < 0.8  # type: ignore[union-attr]
    assert {row.kind for row in report.attacks} <= {"score", "decision", "random", "transfer", "universal"}
    asked = {probe.rule for probe in report.probes if probe.status != "not_applicable"}
    assert asked == {"output-kind"}
    assert any("black box" in note for note in report.notes)


def numbers(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The class that wins, and nothing else."""
    return on_arrays(np.asarray(x)).argmax(1)


def test_a_model_that_answers_class_numbers_is_audited() -> None:
    report = api.audit(numbers, DATA, eps=0.2, settings=QUICK).report
    assert "black box" in report.verdict.sentence
    assert report.accuracy["clean"].value == 1.0  # type: ignore[union-attr]
    assert report.accuracy["best_known"].value < 0.8  # type: ignore[union-attr]
    checks = {check.name: check for check in recount(report.to_dict())}
    assert [name for name, check in checks.items() if not check.holds] == []
    assert checks["levels"].detail == "none was measured"


def test_class_numbers_that_the_data_do_not_have_are_refused() -> None:
    with pytest.raises(ModelError, match="class numbers from 7 to 9, and the data have 3 classes"):
        api.audit(lambda x: numbers(x) + 7, DATA, eps=0.2, settings=QUICK)


@pytest.mark.parametrize("npy", [False, True])
def test_a_service_may_answer_class_numbers(npy: bool) -> None:
    with serving(Orders(numbers, npy=npy)) as url:
        answer = patient(url)[0](X)
    assert answer.dtype == torch.int64
    assert answer.tolist() == numbers(POINTS).tolist()


def test_a_service_that_takes_fewer_points_is_asked_fewer() -> None:
    few = Orders(on_arrays, statuses=[200, 413])
    with serving(few) as url, Target(patient(url)[0], batch_size=60) as target:
        assert target.scores(X[:3]).shape == (3, 3)
        assert target.scores(X).shape == (60, 3)
        assert target.batches.size == 30
    assert "takes fewer than 60 points per request" in target.batches.refusal


def test_queries_are_counted_and_kept_to_the_limit() -> None:
    counted: list[int] = []

    def counting(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        counted.append(len(x))
        return on_arrays(np.asarray(x.tolist()))

    settings = AuditSettings(budget="quick", black_box=True, queries=3000)
    report = api.audit(counting, DATA, eps=0.05, settings=settings).report
    assert sum(counted) <= 3000 + 4  # the few that tell what it is
    assert report.verdict.label == "inconclusive"
    ran = {row.name for row in report.attacks if row.status == "ran" and row.attempted}
    assert {"noise", "square", "decision", "universal"} <= ran, "no attack takes what the others need"
    assert any("too few" in note and "transfer, finite-differences" in note for note in report.notes)
    assert not any("transfer" in row.name for row in report.attacks)
    with pytest.raises(UsageError, match="give --black-box as well"):
        api.audit(nn.Linear(6, 3), DATA, eps=0.05, queries=100, settings=QUICK)


def test_a_module_on_arrays_may_be_called_a_black_box() -> None:
    class Arrays(nn.Module):
        def forward(self, x: Any) -> Any:
            return on_arrays(np.asarray(x))

    with pytest.raises(ModelError, match=r"returned ndarray.*--black-box"), Target(Arrays()) as target:
        target.scores(X)
    report = api.audit(Arrays(), DATA, eps=0.2, black_box=True, settings=QUICK).report
    assert report.accuracy["clean"].value == 1.0  # type: ignore[union-attr]


def test_a_module_may_be_called_a_black_box() -> None:
    net = nn.Linear(6, 3)
    with torch.no_grad():
        net.weight.copy_(10 * torch.from_numpy(W.T))
        net.bias.copy_(-net.weight.sum(1) / 2)
    report = api.audit(net, DATA, eps=0.2, black_box=True, settings=QUICK).report
    assert report.verdict.label == "inconclusive"
    assert not [row for row in report.attacks if row.role in ("reference", "strong", "repaired")]
    assert [check.name for check in recount(report.to_dict()) if not check.holds] == []


def test_the_limit_is_never_passed_and_the_rate_is_kept() -> None:
    now, slept = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    box = BlackBox(lambda x: x, limit=25, rate=10.0, sleep=sleep, clock=lambda: now[0])
    box(X[:10])
    box(X[:10])
    assert slept == [1.0]
    with pytest.raises(QueriesSpentError, match="20 of 25 allowed queries"):
        box(X[:10])
    assert box.queries == 20


def patient(url: str, timeout: float = 5.0) -> tuple[Service, list[float]]:
    slept: list[float] = []
    return Service(url, timeout=timeout, sleep=slept.append), slept


def test_json_and_npy_are_spoken() -> None:
    for npy in (False, True):
        orders = Orders(on_arrays, npy=npy)
        with serving(orders) as url:
            service, _ = patient(url)
            assert torch.allclose(service(X), torch.from_numpy(on_arrays(POINTS)), atol=1e-4)
            service(X[:3])
        assert orders.seen == (
            ["application/json", "application/x-npy", "application/x-npy"] if npy else ["application/json"] * 2
        )


def test_a_service_that_fails_for_a_while_is_asked_again() -> None:
    with serving(Orders(on_arrays, statuses=[503, 500, 429], retry_after="7")) as url:
        service, slept = patient(url)
        assert service(X).shape == (60, 3)
    assert slept == [7.0, 7.0, 7.0]
    with serving(Orders(on_arrays, statuses=[0], slow=1.5)) as url:
        service, slept = patient(url, timeout=1.0)
        assert service(X).shape == (60, 3)
    assert slept  # on a busy machine a later answer may be late as well


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "always busy": ({"statuses": [503] * 99}, "did not answer in 6 attempts .status 503"),
    "no such place": ({"statuses": [404]}, "answered status 404; it must take POST"),
    "a password": ({"password": "Bearer x"}, f"refused access .*{AUTHORIZATION}"),
    "another host": ({"statuses": [302], "location": "http://127.0.0.1:9/"}, "answered status 302"),
    "a web page": ({"raw": b" <html>"}, "answered a web page, not scores"),
    "no JSON": ({"raw": b"scores"}, "is not valid JSON"),
    "no scores": ({"raw": b"{}"}, "without any of scores"),
    "texts": ({"raw": b'{"scores": [["a"]]}'}, "must be"),
    "ragged": ({"raw": b"[[1, 2], [3]]"}, "rows of different lengths"),
    "damaged array": ({"raw": b"\x93NUMPY\x01\x00zz"}, "damaged .npy"),
    "an array of objects": (
        {"raw": b"\x93NUMPY\x01\x00F\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 14 + b"\n"},
        "damaged .npy",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("orders", "says"), BROKEN.values(), ids=BROKEN)
def test_what_a_service_does_wrong_is_one_sentence(orders: dict[str, Any], says: str) -> None:
    with serving(Orders(on_arrays, **orders)) as url, pytest.raises(ModelError, match=says) as caught:
        patient(url)[0](X[:2])
    assert "\n" not in str(caught.value)


def test_an_answer_is_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert web.MAX_BYTES == 64 * 2**20
    monkeypatch.setattr(web, "MAX_BYTES", 1 << 20)
    for size, says in ((1 << 20, "is not valid JSON"), ((1 << 20) + 1, "answered more than 1 MiB")):
        with serving(Orders(on_arrays, raw=b" " * size)) as url, pytest.raises(ModelError, match=says):
            patient(url)[0](X[:2])


def test_nobody_there_is_one_sentence() -> None:
    service, slept = patient("http://127.0.0.1:9/")
    with pytest.raises(ModelError, match="did not answer"):
        service(X[:1])
    assert len(slept) == RETRIES


def test_the_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTHORIZATION, "Bearer x")
    with serving(Orders(on_arrays, password="Bearer x")) as url:
        assert patient(url)[0](X).shape == (60, 3)


def test_a_url_is_audited_within_its_queries() -> None:
    orders = Orders(on_arrays)
    with serving(orders) as url:
        request = api.Request(url, settings=AuditSettings(budget="quick", queries=2500, ignore=("decision",)), eps=0.2)
        report = api.run(api.prepare(request, points=DATA)).report
    assert report.target["format"] == "http"
    assert report.verdict.label == "inconclusive"
    assert report.accuracy["best_known"].value < 0.9  # type: ignore[union-attr]
    assert orders.points <= 2500 + 4


def test_code_names_estimators_and_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boxes.py").write_text(
        "import numpy as np\nclass Tree:\n    classes_ = np.arange(2)\n    def get_params(self):\n        return {}\n"
        "    def predict(self, x):\n        return (x[:, 0] > 0.5).astype(int)\ntree = Tree()\n"
        "def made():\n    return tree\ndef predict(x):\n    return np.asarray(x)[:, :2]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("tree", "made", "predict"):
        loaded = load_model(f"py:boxes:{name}")
        assert tuple(loaded.module(torch.eye(4)).shape) == (4, 2)


def test_real_estimators_and_sessions() -> None:
    ensemble, svm = pytest.importorskip("sklearn.ensemble"), pytest.importorskip("sklearn.svm")
    for estimator in (ensemble.RandomForestClassifier(20, random_state=0), svm.LinearSVC()):
        assert is_service(estimator.fit(POINTS, LABELS))
        box = BlackBox(answering(estimator))
        assert computes_elsewhere(answering(estimator), X[:2])
        assert float((box(X).argmax(1).numpy() == LABELS).mean()) > 0.8
    two = svm.LinearSVC().fit(POINTS, LABELS > 0)
    assert answering(two)(X).shape == (60,)


def test_a_real_session_of_onnx_runtime() -> None:
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", kind, [None, 6])],
        [helper.make_tensor_value_info("y", kind, [None, 3])], [onnx.numpy_helper.from_array(W, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = runtime.InferenceSession(model.SerializeToString())
    assert is_service(session)
    assert torch.allclose(answering(session)(X)["y"], X @ torch.from_numpy(W), atol=1e-5)


def audited(workers: int | None, **changes: Any) -> tuple[dict[str, Any], Orders]:
    """The report of an audit of a service, and what the service saw."""
    orders = Orders(on_arrays)
    settings = AuditSettings(**{"budget": "quick", "samples": 24, "workers": workers, **changes})
    with serving(orders) as url:
        report = api.run(api.prepare(api.Request(url, settings=settings, eps=0.2), points=DATA)).report
    return report.to_dict(), orders


def test_workers_find_what_one_process_finds_and_count_together() -> None:
    """No query is lost, none is counted twice, and the limit is that of all processes together."""
    (alone, first), (shared, second) = (audited(workers, queries=4000) for workers in (None, 2))
    assert first.points == second.points <= 4000
    assert [row["queries"] for row in alone["attacks"]] == [row["queries"] for row in shared["attacks"]]
    assert alone["points"] == shared["points"]


def test_workers_keep_to_a_limit_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AuditSettings, "effort", BUDGETS["quick"])  # the audit does not fit itself into its queries
    report, orders = audited(2, queries=1500)
    assert 500 < orders.points <= 1500
    assert report["partial"]
    assert any("allowed queries" in str(row["reason"]) for row in report["attacks"])


def test_the_rate_is_that_of_all_processes() -> None:
    now = [0.0]
    slept: list[float] = []
    box = BlackBox(torch.clone, rate=10.0, shared=True, sleep=slept.append, clock=lambda: now[0])
    box(torch.zeros(5, 2))
    reader, writer = os.pipe()
    if not (child := os.fork()):
        box(torch.zeros(5, 2))
        os.write(writer, f"{slept[0]:.2f}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 9) == b"0.50"
    assert box.queries == 10
    box(torch.zeros(1, 2))
    assert slept == [pytest.approx(1.0)]


class Session:
    """Looks like a session of ONNX Runtime."""

    def run(self, outputs: Any, feed: Any) -> list[Any]:
        return [on_arrays(next(iter(feed.values())))]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", type="tensor(float)")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="y")]


@pytest.mark.parametrize(("where", "says"), [({"workers": True}, "leave --workers out"), ({"ray": True}, "--ray")])
def test_what_other_processes_cannot_ask(where: dict[str, bool], says: str) -> None:
    assert boxed(Session())(X[:4])["y"].shape == (4, 3)
    for made in (Session(), answering(Session())):  # as given, and as `py:` opens it
        with pytest.raises(UsageError, match=says):
            boxed(made, **where)
