"""The registry of attacks, and the fixed batteries that each budget runs.

Within a budget the white-box attacks are matched: untargeted cross-entropy
(CE*) gets as many gradient steps as all other losses together, so that a gap
between the two families cannot come from unequal effort. An attack is one file
and one line here.
"""

from __future__ import annotations

from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.branch_and_bound import branch_and_bound
from maskaudit.attacks.decision import decision_based
from maskaudit.attacks.finite_differences import finite_differences
from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.noise import random_noise
from maskaudit.attacks.pgd import fgsm, pgd
from maskaudit.attacks.square import square
from maskaudit.attacks.transfer import transfer
from maskaudit.attacks.universal import universal
from maskaudit.settings import Budget

#: Where nothing is suspected, a run of Auto-PGD gives a point up at its first checkpoint if the best candidate keeps
#: more than this share of the clean margin. Of 176 points of 22 healthy networks that were broken after the attacks on
#: cross-entropy, one had kept more by then (0.408; at most 0.26 on the tuning part).
REACH = 0.4

#: Runs on each near miss, on cross-entropy and on targeted margins alike: nine wrong classes, as AutoAttack tries them.
NEAR_RUNS = 9

_MADRY = "Madry et al. 2018, Towards deep learning models resistant to adversarial attacks"
_CROCE = (
    "Croce & Hein 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse "
    "parameter-free attacks"
)


def battery(budget: Budget) -> tuple[AttackSpec, ...]:
    """The attacks of a budget, in the order they run: cheap first, so that the expensive ones meet fewer points."""
    return (*_white_box(budget), *_challengers(budget), *_near_misses(budget), *_exact(budget))


def _white_box(budget: Budget) -> tuple[AttackSpec, ...]:
    other_runs = 3 + budget.targets  # margin, DLR, rescaled, one per targeted class
    sparing = {"reach": REACH}
    return (
        AttackSpec(
            "pgd", "PGD on cross-entropy, 40 steps, random start", "gradient", "reference", pgd,
            {"loss": "ce", "steps": 40}, "cross_entropy", (_MADRY,), everywhere=True,
            phase="white_box", part="reference",
        ),
        AttackSpec(
            "fgsm", "FGSM", "gradient", "strong", fgsm, {}, "cross_entropy",
            ("Goodfellow et al. 2015, Explaining and harnessing adversarial examples",), everywhere=True,
            phase="white_box",
        ),
        AttackSpec(
            "pgd-coarse", "PGD on cross-entropy, steps of ε/4", "gradient", "strong", pgd,
            {"loss": "ce", "steps": budget.steps, "relative_step": 0.25}, "cross_entropy", (_MADRY,), phase="white_box",
        ),
        AttackSpec(
            "apgd-ce", "Auto-PGD on cross-entropy", "gradient", "strong", apgd,
            {"loss": "ce", "steps": budget.steps}, "cross_entropy", (_CROCE,), sparing=sparing,
            phase="white_box", part="cross_entropy",
        ),
        AttackSpec(
            "apgd-margin", "Auto-PGD on the logit margin", "gradient", "strong", apgd,
            {"loss": "margin", "steps": budget.steps}, "other_loss", (_CROCE, "Carlini & Wagner 2017, loss f6"),
            sparing=sparing, phase="white_box", part="other_loss",
        ),
        AttackSpec(
            "apgd-dlr", "Auto-PGD on the difference-of-logits ratio", "gradient", "strong", apgd,
            {"loss": "dlr", "steps": budget.steps}, "other_loss", (_CROCE,), sparing=sparing,
            phase="white_box", part="other_loss",
        ),
        AttackSpec(
            "apgd-rescaled", "Auto-PGD on cross-entropy of logits rescaled per point", "gradient", "strong", apgd,
            {"loss": "rescaled", "steps": budget.steps}, "other_loss",
            ("Yu & Xu 2023, Efficient loss function by minimizing the detrimental effect of floating-point errors",),
            sparing=sparing, phase="white_box", part="other_loss",
        ),
        AttackSpec(
            "apgd-targeted", "Auto-PGD on the targeted difference-of-logits ratio", "gradient", "strong", apgd,
            {"loss": "targeted-dlr", "steps": budget.steps, "targets": budget.targets}, "other_loss", (_CROCE,),
            sparing=sparing, phase="white_box", part="other_loss",
        ),
        AttackSpec(
            "apgd-ce-restarts", "Auto-PGD on cross-entropy again, where only another loss got through", "gradient",
            "strong", apgd, {"loss": "ce", "steps": budget.steps, "restarts": other_runs - 1}, "cross_entropy",
            (_CROCE,), second_chance=True, phase="white_box", part="cross_entropy",
        ),
    )  # fmt: skip


def _challengers(budget: Budget) -> tuple[AttackSpec, ...]:
    return (
        AttackSpec(
            "noise", "Random noise of full size", "random", "challenger",
            random_noise, {"draws": budget.noise_draws}, None,
            ("Athalye et al. 2018, Obfuscated gradients give a false sense of security, section 3.1",), effort="draws",
        ),
        AttackSpec(
            "transfer", "Transfer from a surrogate trained on the model's answers", "transfer", "challenger",
            transfer, {"queries": min(120, budget.queries)}, None,
            ("Papernot et al. 2017, Practical black-box attacks against machine learning",), effort="queries",
            shared=("surrogates",), frugal=False,
        ),
        AttackSpec(
            "square", "Square attack", "score", "challenger", square, {"queries": budget.queries}, None,
            ("Andriushchenko et al. 2020, Square Attack",), effort="queries", part="gradient_free",
        ),
        AttackSpec(
            "finite-differences", "Gradient ascent on score differences at several scales", "score", "challenger",
            finite_differences, {"queries": budget.queries}, None,
            ("Uesato et al. 2018, Adversarial risk and the dangers of evaluating against weak attacks",),
            effort="queries", frugal=False, part="gradient_free",
        ),
        AttackSpec(
            "decision", "Decision-based search from the nearest point of another class", "decision", "challenger",
            decision_based, {"queries": budget.decision_queries}, None,
            ("Chen, Jordan & Wainwright 2020, HopSkipJumpAttack", "Chen & Gu 2020, RayS"), effort="queries",
            shared=("pool",), part="gradient_free",
        ),
        AttackSpec(
            "universal", "Perturbations that broke other points", "universal", "challenger", universal,
            {"most": 16}, None, ("Moosavi-Dezfooli et al. 2017, Universal adversarial perturbations",), phase="shared",
        ),
    )  # fmt: skip


def _near_misses(budget: Budget) -> tuple[AttackSpec, ...]:
    return (
        AttackSpec(
            "apgd-ce-near", "Auto-PGD on cross-entropy from the best candidates, where they nearly broke the point",
            "gradient", "strong", apgd, {"loss": "ce", "steps": budget.steps, "restarts": NEAR_RUNS},
            "cross_entropy", (_CROCE,), phase="near_misses",
        ),
        AttackSpec(
            "apgd-near", "Auto-PGD on targeted margins from the best candidates, where they nearly broke the point",
            "gradient", "strong", apgd, {"loss": "targeted-margin", "steps": budget.steps, "targets": NEAR_RUNS},
            "other_loss", (_CROCE,), phase="near_misses",
        ),
        AttackSpec(
            "square-near", "Square attack from the best candidates, where they nearly broke the point", "score",
            "challenger", square, {"queries": budget.queries // 4, "p_init": 0.1}, None,
            ("Andriushchenko et al. 2020, Square Attack",), phase="near_misses",
        ),
    )  # fmt: skip


def _exact(budget: Budget) -> tuple[AttackSpec, ...]:
    return (
        AttackSpec(
            "branch-and-bound", "Branch and bound over the activations of a small network", "exact", "exact",
            branch_and_bound, {"rounds": budget.bound_rounds}, None,
            ("Zhang et al. 2022, A branch and bound framework for stronger adversarial attacks of ReLU networks",),
            phase="bounds", decisive=False,
        ),
    )  # fmt: skip


#: PGD with the whole input range as its ball: an attack that cannot fail on a differentiable model.
UNBOUNDED = AttackSpec(
    "unbounded", "PGD on cross-entropy with an unbounded ball", "gradient", "sanity", pgd,
    {"loss": "ce", "steps": 40, "relative_step": 0.05}, "cross_entropy",
    ("Athalye et al. 2018, section 3.1", "Carlini et al. 2019, On evaluating adversarial robustness"), everywhere=True,
    phase="sanity",
)  # fmt: skip
