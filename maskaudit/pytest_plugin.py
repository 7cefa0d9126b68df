"""The pytest plugin: a fixture that audits a model inside a test.

    def test_claim(maskaudit):
        maskaudit.assert_not_masked(model, (x, y), eps=8 / 255, claim=0.53)

torch is imported when the fixture is used, so that other tests do not wait for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from maskaudit.auditing.runner import Audit
    from maskaudit.data import Dataset
    from maskaudit.threat import Norm

    Model = nn.Module | Callable[[Tensor], Tensor] | str
    Data = str | Dataset | tuple[Tensor, Tensor]

FailOn = Literal["masked", "suspect", "inconclusive"]

_ORDER = ("masked", "suspect", "inconclusive")


class InconclusiveAuditWarning(UserWarning):
    """An audit could not decide, and the test was not told to fail on that."""


class Auditor:
    """What the fixture `maskaudit` gives to a test."""

    def audit(
        self,
        model: Model,
        data: Data | None = None,
        *,
        eps: float | None = None,
        norm: Norm | None = None,
        bounds: tuple[float, float] | None = None,
        **settings: Any,
    ) -> Audit:
        """Audit a model; see `maskaudit.audit`.

        Args:
            model: a module or callable from (N, …) to class scores (N, K), or a source as for `maskaudit check`.
            data: a data source, a `Dataset`, or inputs float32 (N, …) in `bounds` with labels int64 (N,).
            eps: radius in input units; the customary value if not given.
            settings: fields of `maskaudit.AuditSettings`: budget, samples, seed, claim, mean, std, …

        Raises:
            MaskauditError: when model or data are refused or do not fit together.
            ModelError: when the model fails while it is audited.
        """
        __tracebackhide__ = True
        from maskaudit import api
        from maskaudit.settings import AuditSettings

        result = api.audit(model, data, norm=norm, eps=eps, bounds=bounds, settings=AuditSettings(**settings))
        if result.failure is not None:
            raise result.failure
        return result

    def assert_not_masked(
        self,
        model: Model,
        data: Data | None = None,
        *,
        eps: float | None = None,
        norm: Norm | None = None,
        bounds: tuple[float, float] | None = None,
        fail_on: FailOn = "masked",
        **settings: Any,
    ) -> Audit:
        """Audit, and fail the test when masking is proven or a claim (`claim=0.53`) is refuted.

        Args:
            fail_on: the mildest verdict that fails: `masked`, `suspect`, or `inconclusive`; an inconclusive
                audit that does not fail the test warns.
            settings: as for `audit`.

        Returns:
            The audit, for further assertions.
        """
        __tracebackhide__ = True
        from maskaudit.errors import UsageError
        from maskaudit.report.text import brief

        if fail_on not in _ORDER:
            raise UsageError(f"fail_on must be one of {', '.join(_ORDER)}, got {fail_on!r}.")
        result = self.audit(model, data, eps=eps, norm=norm, bounds=bounds, **settings)
        label = result.report.verdict.label
        if label in _ORDER[: _ORDER.index(fail_on) + 1] or result.report.claim.status == "refuted":
            pytest.fail(brief(result.report.to_dict()), pytrace=False)
        if label == "inconclusive":
            warnings.warn(InconclusiveAuditWarning(result.report.verdict.sentence), stacklevel=2)
        return result


@pytest.fixture(scope="session")
def maskaudit() -> Auditor:
    """Audits models for gradient masking: `maskaudit.assert_not_masked(model, data, eps=8/255)`."""
    return Auditor()
