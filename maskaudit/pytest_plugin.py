"""The pytest plugin: a fixture that audits a model inside a test.

    def test_claim(maskaudit):
        maskaudit.assert_not_masked(model, (x, y), eps=8 / 255, claim=0.53)

Options of a test's audits may stand in its marker, `@pytest.mark.maskaudit(eps=8 / 255)`; every test that uses the
fixture has that marker, so that `-m "not maskaudit"` leaves audits out. torch is imported when the fixture is used, so
that other tests do not wait for it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from maskaudit.errors import InconclusiveAuditWarning, InputError, MaskedError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from maskaudit.auditing.runner import Audit
    from maskaudit.data import Dataset

    Model = nn.Module | Callable[[Tensor], Tensor] | str
    Data = str | Dataset | tuple[Tensor, Tensor]

__all__ = ["Auditor", "InconclusiveAuditWarning", "maskaudit"]


#: What the test that runs now brings: its name, and the options of its marker.
_RUNNING = pytest.StashKey[tuple[str, dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the command line."""
    group = parser.getgroup("maskaudit")
    group.addoption("--maskaudit-budget", metavar="BUDGET", help="Budget of all audits, whatever the tests say.")
    group.addoption("--maskaudit-out", metavar="DIR", help="Keep the reports of all audits, a folder for each test.")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker `maskaudit` to pytest."""
    config.addinivalue_line("markers", "maskaudit(**options): audits a model; options of `maskaudit check` for it.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the fixture."""
    for item in items:
        if "maskaudit" in getattr(item, "fixturenames", ()) and item.get_closest_marker("maskaudit") is None:
            item.add_marker("maskaudit")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note what the test brings; the marker nearest to it wins."""
    options: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("maskaudit"))):
        if marker.args or "model" in marker.kwargs:
            pytest.fail("The marker maskaudit takes options by name, such as eps=0.1, and no model.", pytrace=False)
        options |= marker.kwargs
    item.config.stash[_RUNNING] = item.nodeid, options


class Auditor:
    """What the fixture `maskaudit` gives to a test."""

    def __init__(self, config: pytest.Config | None = None) -> None:
        self._config = config

    def audit(self, model: Model, data: Data | None = None, **options: Any) -> Audit:
        """Audit a model; arguments and errors are those of `maskaudit.audit`, those of the marker go without saying.

        Raises:
            ModelError: when the model fails while it is audited.
        """
        __tracebackhide__ = True
        from maskaudit import api

        result = api.audit(model, **self._completed(options if data is None else {"data": data, **options}))
        self._keep(result)
        if result.failure is not None:
            raise result.failure
        return result

    def assert_not_masked(self, model: Model, data: Data | None = None, **options: Any) -> Audit:
        """Audit, and fail the test where `maskaudit.assert_not_masked` raises; the arguments are the same."""
        __tracebackhide__ = True
        from maskaudit import api

        completed = self._completed(options)
        result = self.audit(model, data, **options)
        try:
            api.require_not_masked(result, completed.get("fail_on"), completed.get("settings"))
        except MaskedError as error:
            pytest.fail(str(error), pytrace=False)
        return result

    def _completed(self, options: dict[str, Any]) -> dict[str, Any]:
        if self._config is None:
            return options
        budget = self._config.getoption("--maskaudit-budget")
        marked = self._config.stash.get(_RUNNING, ("", {}))[1]
        return {**marked, **options, **({"budget": budget} if budget else {})}

    def _keep(self, audit: Audit) -> None:
        """Write the reports, where they are asked for; a second audit of a test goes into a folder beside the first."""
        out = self._config.getoption("--maskaudit-out") if self._config else None
        if self._config is None or not out:
            return
        from maskaudit.command.output import parse_outputs, write_outputs

        test = re.sub(r"[^A-Za-z0-9._-]+", "-", self._config.stash.get(_RUNNING, ("test", {}))[0]).strip("-.")[:150]
        folder = _new_folder(self._config.invocation_params.dir / out, test)
        write_outputs(parse_outputs((), str(folder)), audit.report.to_dict(), audit.evidence)


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that was not there, by this name or with a number behind it; other processes may ask for one too.

    Raises:
        InputError: when it cannot be made.
    """
    for number in itertools.count(1):
        folder = parent / (f"{name}-{number}" if number > 1 else name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if not folder.is_dir():
                raise InputError(f"{folder} cannot be made: {error.strerror}.") from None
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {error.strerror}.") from None
        else:
            return folder
    raise AssertionError


@pytest.fixture(scope="session")
def maskaudit(pytestconfig: pytest.Config) -> Auditor:
    """Audits models for gradient masking: `maskaudit.assert_not_masked(model, data, eps=8/255)`."""
    return Auditor(pytestconfig)
