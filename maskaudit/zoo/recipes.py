"""The zoo's own training methods by name: published defences and constructions that should not be trained for use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from maskaudit.train import Method
from maskaudit.zoo import recipes_hidden, recipes_masking, recipes_robust


@dataclass(frozen=True)
class Recipe:
    """A training method.

    Attributes:
        title: its name in the literature.
        citation: authors, year and where.
        epochs: default number of passes, chosen on the embedded digits.
        lr: default initial step size of Adam, chosen likewise.
        create: makes the method for a plan, an initialised model and its options by keyword.
    """

    title: str
    citation: str
    epochs: int
    lr: float
    create: Callable[..., Method]


_KANNAN = "Kannan, Kurakin, Goodfellow 2018, arXiv 1803.06373"

RECIPES: Mapping[str, Recipe] = {
    "label-smoothing": Recipe(
        "Label smoothing", "Szegedy et al. 2016, arXiv 1512.00567", 40, 6e-3, recipes_robust.LabelSmoothing
    ),
    "gaussian-noise": Recipe(
        "Gaussian noise training", "Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918", 60, 6e-3, recipes_robust.Noisy
    ),
    "fast-at": Recipe(
        "Fast adversarial training", "Wong, Rice, Kolter 2020, arXiv 2001.03994", 60, 4e-3, recipes_robust.FastTraining
    ),
    "ibp": Recipe(
        "Interval bound propagation", "Gowal et al. 2018, arXiv 1810.12715", 100, 3e-3, recipes_robust.IntervalTraining
    ),
    "alp": Recipe("Adversarial logit pairing", _KANNAN, 60, 4e-3, recipes_robust.LogitPairing),
    "dead-units": Recipe(
        "PGD training with most units dead from the start",
        "Madry et al. 2018, arXiv 1706.06083",
        60,
        6e-3,
        recipes_robust.DeadUnits,
    ),
    "clp": Recipe("Clean logit pairing", _KANNAN, 60, 4e-3, recipes_masking.CleanLogitPairing),
    "lsq": Recipe("Logit squeezing", _KANNAN, 60, 4e-3, recipes_masking.LogitSqueezing),
    "feature-scattering": Recipe(
        "Feature scattering", "Zhang, Wang 2019, arXiv 1907.10764", 60, 4e-3, recipes_masking.FeatureScattering
    ),
    "gradient-regularised": Recipe(
        "Input gradient regularisation",
        "Ross, Doshi-Velez 2018, arXiv 1711.09404",
        60,
        4e-3,
        recipes_masking.GradientRegularised,
    ),
    "pcl": Recipe(
        "Prototype conformity loss", "Mustafa et al. 2019, arXiv 1904.00887", 60, 3e-3, recipes_masking.Prototypes
    ),
    "adp": Recipe(
        "Adaptive diversity promoting", "Pang et al. 2019, arXiv 1901.08846", 60, 4e-3, recipes_masking.DiverseEnsemble
    ),
    "planted": Recipe(
        "Hidden counterexample", "Xu et al. 2024, SoundnessBench, arXiv 2412.03154", 80, 4e-3, recipes_masking.Planted
    ),
    "bent-surface": Recipe(
        "Flat margin at the data, bent beyond",
        "Ross, Doshi-Velez 2018, arXiv 1711.09404; free of scale here",
        60,
        4e-3,
        recipes_masking.BentSurface,
    ),
    "trapped-corner": Recipe(
        "Counterexample trained out of sight",
        "Xu et al. 2024, SoundnessBench, arXiv 2412.03154",
        100,
        4e-3,
        recipes_hidden.TrappedCorner,
    ),
}
