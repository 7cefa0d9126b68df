"""The pytest plugin: a fixture that audits a model inside a test.

    def test_claim(maskaudit):
        maskaudit.assert_not_masked(model, (x, y), eps=8 / 255, claim=0.53)

torch is imported when the fixture is used, so that other tests do not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from maskaudit.errors import InconclusiveAuditWarning, MaskedError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from maskaudit.auditing.runner import Audit
    from maskaudit.data import Dataset

    Model = nn.Module | Callable[[Tensor], Tensor] | str
    Data = str | Dataset | tuple[Tensor, Tensor]

__all__ = ["Auditor", "InconclusiveAuditWarning", "maskaudit"]


class Auditor:
    """What the fixture `maskaudit` gives to a test."""

    def audit(self, model: Model, data: Data | None = None, **options: Any) -> Audit:
        """Audit a model; arguments and errors are those of `maskaudit.audit`.

        Raises:
            ModelError: when the model fails while it is audited.
        """
        __tracebackhide__ = True
        from maskaudit import api

        result = api.audit(model, data, **options)
        if result.failure is not None:
            raise result.failure
        return result

    def assert_not_masked(self, model: Model, data: Data | None = None, **options: Any) -> Audit:
        """Audit, and fail the test where `maskaudit.assert_not_masked` raises; the arguments are the same."""
        __tracebackhide__ = True
        from maskaudit import api

        try:
            return api.assert_not_masked(model, data, **options)
        except MaskedError as error:
            pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def maskaudit() -> Auditor:
    """Audits models for gradient masking: `maskaudit.assert_not_masked(model, data, eps=8/255)`."""
    return Auditor()
