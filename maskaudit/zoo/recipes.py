"""The zoo's own training methods by name: published defences and constructions that should not be trained for use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from maskaudit.train import Method, MethodInfo
from maskaudit.zoo import recipes_hidden, recipes_masking, recipes_robust


def _recipe(title: str, citation: str, epochs: int, lr: float, create: Callable[..., Method]) -> MethodInfo:
    """A method that no command line offers; `create` takes its options by keyword."""
    return MethodInfo(title, citation, "", epochs, lr, create)


_KANNAN = "Kannan, Kurakin, Goodfellow 2018, arXiv 1803.06373"

RECIPES: Mapping[str, MethodInfo] = {
    "label-smoothing": _recipe("Label smoothing", "Szegedy et al. 2016, arXiv 1512.00567", 40, 6e-3,
        recipes_robust.LabelSmoothing),
    "gaussian-noise": _recipe("Gaussian noise training", "Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918", 60, 6e-3,
        recipes_robust.Noisy),
    "fast-at": _recipe("Fast adversarial training", "Wong, Rice, Kolter 2020, arXiv 2001.03994", 60, 4e-3,
        recipes_robust.FastTraining),
    "ibp": _recipe("Interval bound propagation", "Gowal et al. 2018, arXiv 1810.12715", 100, 3e-3,
        recipes_robust.IntervalTraining),
    "alp": _recipe("Adversarial logit pairing", _KANNAN, 60, 4e-3, recipes_robust.LogitPairing),
    "dead-units": _recipe("PGD training with most units dead from the start", "Madry et al. 2018, arXiv 1706.06083", 60,
        6e-3, recipes_robust.DeadUnits),
    "clp": _recipe("Clean logit pairing", _KANNAN, 60, 4e-3, recipes_masking.CleanLogitPairing),
    "lsq": _recipe("Logit squeezing", _KANNAN, 60, 4e-3, recipes_masking.LogitSqueezing),
    "feature-scattering": _recipe("Feature scattering", "Zhang, Wang 2019, arXiv 1907.10764", 60, 4e-3,
        recipes_masking.FeatureScattering),
    "gradient-regularised": _recipe("Input gradient regularisation", "Ross, Doshi-Velez 2018, arXiv 1711.09404", 60,
        4e-3, recipes_masking.GradientRegularised),
    "pcl": _recipe("Prototype conformity loss", "Mustafa et al. 2019, arXiv 1904.00887", 60, 3e-3,
        recipes_masking.Prototypes),
    "adp": _recipe("Adaptive diversity promoting", "Pang et al. 2019, arXiv 1901.08846", 60, 4e-3,
        recipes_masking.DiverseEnsemble),
    "planted": _recipe("Hidden counterexample", "Xu et al. 2024, SoundnessBench, arXiv 2412.03154", 80, 4e-3,
        recipes_masking.Planted),
    "bent-surface": _recipe("Flat margin at the data, bent beyond",
        "Ross, Doshi-Velez 2018, arXiv 1711.09404; free of scale here", 60, 4e-3, recipes_masking.BentSurface),
    "trapped-corner": _recipe("Counterexample trained out of sight", "Xu et al. 2024, SoundnessBench, arXiv 2412.03154",
        100, 4e-3, recipes_hidden.TrappedCorner),
}  # fmt: skip
