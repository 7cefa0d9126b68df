"""Every threshold of the verdict: of the rule, the power check, mechanisms, probes, the trace and repairs.

A finding says that something looks wrong; whether the model is masked is decided
by paired attack evidence (`maskaudit.verdict.rules`), never by a probe alone.
"Measured" means on 41 models of known truth (digits, ε = 0.2), see docs/verdict.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# --- the rule (`maskaudit.verdict.rules`); hidden shares are of all drawn points, as robust accuracy is

#: Error level of the whole audit for an undue `masked`, spent over looks and over the two levels.
ALPHA = 0.01

#: Hidden share of points that healthy models may show from attacks of unequal luck. Measured on the
#: tuning part of the zoo: at most 0.035 at gradient level; at loss level 0.02 once budgets are matched.
SLACK = 0.05

#: Hidden share that no luck explains, screen or not (healthy models: at most 0.035 at gradient level, squeezed ones
#: 0.08 at loss level). It equals `CLEAR_LIMIT_UNSCREENED`: with points enough every share is decided.
GROSS_SLACK = 0.12

#: `clear` needs the hidden share of points to be below this by an upper confidence bound …
CLEAR_LIMIT = 0.10

#: … and below this where no indicator of the screen fired: losses of unequal worth leave honest, squeezed networks
#: up to 0.08 at loss level, which 600 points cannot bound below 0.10; an observed share of 0.10 stays above this
#: limit with up to 1,600 points.
CLEAR_LIMIT_UNSCREENED = 0.12

#: Of the correctly classified points, too, `clear` needs less to be hidden than this, by the same bound: where nearly
#: all answers are wrong, the limits above allow all that is left. An honest network that is 37 % right showed 0.14.
CLEAR_LIMIT_OF_CORRECT = 0.30

#: Most points that the reasons of a verdict advise to audit: as many as the largest budget draws.
MOST_ADVISED = 1600

#: Fewer correctly classified points than this cannot carry a verdict.
MIN_POINTS = 20

#: Probes whose finding fires the screen.
SCREEN = ("zero-gradient", "finite-difference-agreement", "unbounded-attack")
#: Of these, those that make small gaps at loss level suspicious. Where the gradient of the margin itself disagrees with
#: differences, every further attack is one more draw: all of them together find more than those on cross-entropy alone,
#: whatever their losses are worth.
SCREEN_OF_LOSS = ("zero-gradient", "unbounded-attack")

#: The mechanism of an op that brings logits close together, which is such a sign as well.
SMALL_LOGITS = "small-logits"

# --- when a search is worth its passes (`maskaudit.auditing.draw_or_search`)

#: Points up to which a search is postponed where white-box attacks on so many would bound the gradient level by
#: themselves, for less than a search of those that withstand; where the user asks for more points, up to these.
PATIENCE = 160

#: Share hidden at loss level, of which a few further points prove that it is above the slack.
TELLING_LOSS = 0.1

#: Share of points with no margin gradient above which gradients are called uninformative (`suspect`), and the gradient
#: is said to be zero on most points by the mechanism: "most" of them.
NO_GRADIENT_SHARE = 0.5

# --- clean accuracy at the start (`maskaudit.target.diagnose`)

#: Clean accuracy below which causes are tried: data and options that fit leave few models below it.
CLEAN_DOUBT = 0.9
#: Share of the points that a cause must explain to be named, and of those answered wrongly; choices. Networks trained
#: for one epoch gain up to .18 of the latter under a normalisation that they were not trained with.
CAUSE_GAIN, CAUSE_SHARE = 0.1, 0.25
#: Chance above which guessing explains what is answered rightly: then the audit stops.
HOPELESS = 0.05

# --- examples of a random model (`maskaudit.target.rescore`)

#: Fresh draws whose majority decides for a random model; odd, so that there is one.
MAJORITY_DRAWS = 31
#: Fresh draws of the proof that an example wins more than half of all, and the chance at most, by the exact binomial,
#: that one passes which does not: 67 wins of 101. Declared, as `ALPHA` is; none of the draws was seen by an attack.
PROOF_DRAWS, PROOF_ERROR = 101, 0.001

# --- the power check (`maskaudit.verdict.power`)

#: Known answers needed before recapture says anything.
MIN_KNOWN = 15

#: Known answers that the challengers are tried on at most; a share of 0.62 then passes, and the rest is spared.
RECAPTURE_POINTS = 64

#: The search must find more than this share of the known answers, by a one-sided lower bound at POWER_ALPHA.
MIN_POWER = 0.5
POWER_ALPHA = 0.05

# --- mechanisms (`maskaudit.verdict.mechanisms`)

#: Share of the points that move under the coarsest step which must still move under the finest one for
#: a function to count as smooth; a quantiser moved 11 %, a zero backward pass left 100 %.
SMOOTH_SHARE = 0.5

#: FGSM leaves this share of the points more than many small steps do. Of 24 honest models measured, standard training
#: showed the most (docs/verdict.md: up to .29); networks after catastrophic overfitting lose .7 and more.
OVERFITTING_GAP = 0.4

# --- probes

#: Share of points. Largest paired gap between gradient-free and white-box attacks seen on 24 honest models.
HONEST_GAP = 0.035
#: Share of points. No honest model of the zoo had any; masked ones had 16 % and more.
ZERO_GRADIENT_SHARE = 0.05
#: Mean cosine. Honest deterministic models reach .92 to .99 at ε/4, masked ones at most .82. The probe takes the cosine
#: of each point over its directions and the mean over points; see `TRACE_AGREEMENT`.
AGREEMENT = 0.85
#: Points. Fewer of them whose changes rise above rounding give no mean cosine at a scale; a choice.
FEWEST_COMPARED = 10
#: Share of points. PGD that may cross the whole box left none on honest models, 3 to 50 % on masked ones.
UNBOUNDED_SHARE = 0.02
#: Share of a layer's activations, or of the units of an op of the trace. Half of the layer passes no gradient.
FLAT_SHARE = 0.5
#: Share of an activation's largest slope below which a unit is flat for the probe, which sees the argument of the
#: activation: tanh beyond |x| = 4.1. A choice; `BLOCKED_SLOPE` is that of the trace.
FLAT_SLOPE = 1e-3
#: Share of a layer's units. A PGD-trained net with 75 % dead units was healthy and robust: only more is worth naming.
#: (The probe counts units that are off at every point; `BLOCKED_RELU_SHARE` is another figure.)
DEAD_SHARE = 0.9
#: Slope below the floor up to which a leaky rectifier counts as shut: what leaks is this part of what would pass.
SHUT_SLOPE = 0.1
#: Decades, as a share of those from 1 to the smallest or the largest number, beyond which a gradient that is lost at
#: the input was lost to depth, not to one op; a choice.
FADED_SHARE = 0.75
#: Share by which a gradient's norm may miss its due when all is scaled: sums on a GPU are taken in any order.
PROPORTIONAL = 0.01
#: log10. Below 2⁻²⁴ the coefficient 1 − p_y of the cross-entropy gradient is lost next to 1 in float32.
LOG_RATIO = math.log10(2.0**-24)
#: Ratio. Perpendicular gradients of which one is four times the other point within 14 degrees of the larger; a choice.
MARGIN_RATIO = 4.0
#: Share of points where a step across the gradient beats the step along it. Measured on digits, ε = 0.2: honest
#: sigmoid and tanh networks at most 0.14, networks with a ripple on logits or input 0.28 and more.
CURVATURE_SHARE = 0.25
#: Share of points whose outputs carry no usable float32 cross-entropy.
SATURATED_OUTPUT_SHARE = 0.05

# --- the trace (`maskaudit.trace`): when a gradient is poor, and which ops are suspects. It is zero on too many points
# beyond `ZERO_GRADIENT_SHARE`, and an op is saturated beyond `FLAT_SHARE`, as for the probes. Where no source is named,
# the twenty hand-built masks of `tests/trace/masked_models.py` are it, not the zoo.

#: Correlation. Below it directional derivatives are at odds with central differences: halfway between healthy networks
#: (.92 and above at ε/4, docs/verdict.md) and masked ones (.82 and below). Not `AGREEMENT`, which decides a verdict and
#: was left as fitted: here all pairs of points and directions make one correlation, in which steep points weigh most,
#: and a suspect accuses nobody by itself, so that the limit need not lean to either side.
TRACE_AGREEMENT = 0.87
#: Share of points. An op kills (or spoils) the gradient when more of those that arrive leave as exactly nothing (not
#: finite).
KILLED_SHARE = 0.5
#: Factor. A unit is blocked when its arriving gradient shrinks below it; the slope of tanh falls below it beyond
#: |x| = 3, that of the logistic function beyond |x| = 4.6. Not `FLAT_SLOPE`: gradients are compared here, as they
#: arrive and leave, of any op; the probe looks at slopes of named activations.
BLOCKED_SLOPE = 1e-2
#: Share of units. Rectifiers are suspected when more are blocked; ReLU blocks about half of them in health. The units
#: are counted at single points, so that it takes more than `DEAD_SHARE`.
BLOCKED_RELU_SHARE = 0.97
#: Share of units. Ops without a flat side in normal use are suspects beyond it, whatever the gradient as a whole says,
#: and a custom Function beyond it is shut.
BLOCKED_ALONE_SHARE = 0.8
#: Share of units. A saturated op (no rectifier) is suspected with high confidence beyond it, else with medium.
SURELY_SATURATED_SHARE = 0.7
#: Radians. Periodic ops are suspects when a perturbation of size ε moves their argument by more, in the median.
PHASE_SHIFT = 0.5
#: Runs from which on a line is a loop, and growth of the gradient over them all beyond which its slope is noise: a
#: perturbation of ε = 0.2 then moves the result by more than the whole range of the input.
LOOP_TURNS, LOOP_GROWTH = 5, 100.0
#: Score units. Distance of the largest from the smallest score, median over points, below which cross-entropy follows
#: all classes (`SMALL_LOGITS`, which fires the screen of the loss): a PGD-trained network for digits has 14, and with
#: its logits × 0.1 attacks on cross-entropy miss a fifth of the points.
CLOSE_SCORES = 3.0
#: Correlation. The backward of a custom Function is honest when it follows its forward this well at some scale.
HONEST_BACKWARD = 0.5
#: Correlation. A forward is smooth when its finest differences go along this well with those at twice the step.
SMOOTH_FORWARD = 0.9
#: Correlation. A gradient is that of a staircase's trend where its term goes along at least this well with it, and of
#: something else where less than the second. Between lie gates, whose few open units say little of their scores.
STAIRCASE_TREND, STAIRCASE_FOREIGN = 0.3, 0.1
#: Share of points whose decision flips between two draws, beyond which randomness is named with high and with medium
#: confidence; below, with low. Choices.
OFTEN_FLIPS, SELDOM_FLIPS = 0.2, 0.02

# --- repairs (`maskaudit.repairs`)

#: Correlation. By how much an agreement near its limit has to rise at least for a cut to be blamed: other pairs of
#: points and directions move it as well.
BLAME_GAIN = 0.05
#: Correlation of input and output from which the output of a function counts as a likeness of its input; a choice.
LIKENESS = 0.5


@dataclass(frozen=True)
class Limit:
    """When a measurement becomes a finding.

    Attributes:
        value: the limit, in the unit of the measurement.
        direction: the side that raises the finding, strictly.
        unit: what the limit counts.
        source: where the number comes from.
        on: which figure is compared: the estimate, or the lower end of its interval for
            paired gaps, so that two stray points never accuse a model.
    """

    value: float
    direction: Literal["above", "below"]
    unit: str
    source: str
    on: Literal["value", "low"] = "value"

    def exceeded(self, value: float, low: float | None = None) -> bool:
        """Whether the finding is raised by an estimate and the lower end of its interval; NaN never raises."""
        figure = low if self.on == "low" and low is not None else value
        return figure > self.value if self.direction == "above" else figure < self.value


_GAP = Limit(HONEST_GAP, "above", "share of points", "largest gap on honest models, measured", on="low")

LIMITS: Mapping[str, Limit] = {
    "saturation": Limit(FLAT_SHARE, "above", "share of activations", "half of a layer passes no gradient"),
    "dead-relu": Limit(DEAD_SHARE, "above", "share of units", "a healthy net had 75 % dead units, measured"),
    "loss-decision-gradient-ratio": Limit(LOG_RATIO, "below", "log10", "spacing of float32 below 1, IEEE 754"),
    "imbalanced-margin": Limit(MARGIN_RATIO, "above", "ratio", "the whole within 14° of one term, a choice"),
    "layer-gradient-flow": Limit(ZERO_GRADIENT_SHARE, "above", "share of points", "as for zero gradients, measured"),
    "low-gradient-curvature": Limit(CURVATURE_SHARE, "above", "share of points", "honest ≤ .14, rippled ≥ .28"),
    "transfer-gap": _GAP,
    "gradient-free-gap": _GAP,
    "random-beats-gradient": _GAP,
    "one-step-beats-iterative": _GAP,
    "zero-gradient": Limit(ZERO_GRADIENT_SHARE, "above", "share of points", "masked 13/17, honest 0/24, measured"),
    "finite-difference-agreement": Limit(AGREEMENT, "below", "mean cosine", "honest .92–.99 at ε/4, measured"),
    "unbounded-attack": Limit(UNBOUNDED_SHARE, "above", "share of points", "masked 16/17, honest 0/24, measured"),
    "output-kind": Limit(SATURATED_OUTPUT_SHARE, "above", "share of points", "as for exactly zero gradients, measured"),
}

#: Probes without a limit, and why.
INFORMATIVE: Mapping[str, str] = {
    "blind-spots": "what is ignored outside of the ball says nothing of the gradients inside",
    "randomness": "random answers are not masking by themselves; attacks then average over draws",
}
