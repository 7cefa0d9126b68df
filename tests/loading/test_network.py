"""Hubs without a network: packages are told so at once, for as long as they are asked."""

from __future__ import annotations

import os
import socket
import sys
import time
import types
from collections.abc import Iterator

import pytest

from maskaudit.errors import InputError
from maskaudit.loading import network
from maskaudit.sources import load_model


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*network.OFFLINE, "HF_ENDPOINT", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    listening = socket.create_server(("127.0.0.1", 0))
    yield listening
    listening.close()


def test_a_host_that_answers(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.getsockname()[1]
    assert network.reachable(f"http://127.0.0.1:{port}/x")
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{port}")
    assert network.reachable("https://no-such-host.invalid")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert network.address("timm") == f"http://127.0.0.1:{port}"
    with network.briefly("hf") as online:
        assert online
        assert "HF_HUB_OFFLINE" not in os.environ


def test_a_host_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = []

    def hang(*_: object, **__: object) -> None:
        while not release:
            time.sleep(0.01)

    monkeypatch.setattr(network, "PATIENCE", 0.05)
    monkeypatch.setattr(socket, "create_connection", hang)
    assert not network.reachable("https://example.org")
    release.append(True)


@pytest.mark.parametrize("url", ["https://a..b", "http://127.0.0.1:99999", "http://[x", "", "http://" + "a" * 99])
def test_an_address_that_is_none_is_not_reachable(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[object] = []
    monkeypatch.setattr("threading.excepthook", raised.append)
    assert not network.reachable(url)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: None)
    assert not network.reachable("https://example.org")
    assert raised == []


def test_packages_are_told_and_everything_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = types.ModuleType("huggingface_hub.constants")
    constants.HF_HUB_OFFLINE = False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    monkeypatch.setattr(network, "reachable", lambda url: False)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    with network.briefly("hf") as online:
        assert not online
        assert all(os.environ[name] == "1" for name in network.OFFLINE)
        assert constants.HF_HUB_OFFLINE
        assert socket.getdefaulttimeout() == network.PATIENCE
    assert os.environ["HF_DATASETS_OFFLINE"] == "0"
    assert "HF_HUB_OFFLINE" not in os.environ
    assert not constants.HF_HUB_OFFLINE
    assert socket.getdefaulttimeout() is None


def test_one_sentence_names_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, pretrained: bool) -> None:
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        raise OSError("no network")

    stub = types.ModuleType("timm")
    stub.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", stub)
    monkeypatch.setattr(network, "reachable", lambda url: False)
    with pytest.raises(InputError, match=r"timm:resnet18 is not available .* https://huggingface\.co does not answer"):
        load_model("timm:resnet18")
