"""The power check: an audit that finds nothing must show that it could have found something.

Two forms, both about the challengers, since they carry the claim that nothing is hidden:

* *recapture*: of (a sample of) the points that white-box attacks broke, the share that the
  challengers, which never saw those examples, broke on their own. Known answers
  that the model itself provides.
* *planted*: where too few points are known to be vulnerable, binary problems built on
  the model's own scores with an example planted inside the ball (Zimmermann et al.
  2022, "Increasing confidence in adversarial robustness evaluations"); see
  `maskaudit.auditing.planted`.

Failing the check never accuses a model: it turns `clear` into `inconclusive`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from maskaudit.verdict.limits import MIN_POWER, POWER_ALPHA, RECAPTURE_POINTS
from maskaudit.verdict.statistics import lower_bound, rate, upper_bound


@dataclass(frozen=True)
class Power:
    """Outcome of the power check; `passed` is None when it could not be made."""

    passed: bool | None
    method: str
    found: int
    known: int
    random_found: int | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain form for the report."""
        share = (
            asdict(rate(self.found, self.known)) if self.known else {"value": None, "low": None, "high": None, "n": 0}
        )
        document = {"passed": self.passed, "method": self.method, "sentence": self.sentence, **share}
        return document if self.random_found is None else {**document, "random_search_found": self.random_found}

    @property
    def settled(self) -> bool:
        """Whether more known answers would not let it pass: there are many, or by what was found it is too weak."""
        if self.passed or self.known == 0:
            return bool(self.passed)
        return self.known >= RECAPTURE_POINTS or upper_bound(self.found, self.known, POWER_ALPHA) < MIN_POWER

    @property
    def sentence(self) -> str:
        """The outcome of the power check in words."""
        if self.passed is None:
            if self.method == "none":
                return "The power of the search was not checked, because the verdict does not depend on it."
            return "The power of the search could not be checked: there was no known answer."
        asked = {
            "recapture": f"broke {self.found} of {self.known} points that are known to be breakable",
            "planted": f"found {self.found} of {self.known} examples planted inside the ball",
        }[self.method]
        verdict = "so it had the power to find masking" if self.passed else "too few to trust that it found nothing"
        return f"The gradient-free search {asked}, {verdict}."


#: Before the check was made.
NOT_CHECKED = Power(None, "none", 0, 0)


def check_power(method: str, found: int, known: int, random_found: int | None = None) -> Power:
    """Grade `found` of `known` answers."""
    if known == 0:
        return Power(None, method, 0, 0)
    return Power(lower_bound(found, known, POWER_ALPHA) > MIN_POWER, method, found, known, random_found)
