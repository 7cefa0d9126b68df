"""What every field of the JSON report means, in the words of `formats.md`.

Kept next to the generator: it refuses to run when a field of a dataclass has no entry here, and the
tests look for every field of a real report.
"""

from __future__ import annotations

#: Dataclasses of `maskaudit.results`, by class name.
CLASSES: dict[str, dict[str, str]] = {
    "Rate": {
        "value": "the share itself, a fraction",
        "low": "lower end of its exact (Clopper–Pearson) interval at 99 %",
        "high": "upper end of that interval",
        "n": "number of points it was counted on",
    },
    "Location": {
        "module": "path of the module inside the model",
        "op": "operation, if known",
        "file": "source file, if known",
        "line": "line in it, if known",
    },
    "Mechanism": {
        "id": "stable identifier",
        "title": "one sentence",
        "confidence": "how sure the naming is; independent of the verdict",
        "locations": "where it was seen, worst first",
        "confirmed_by": "the repair that broke points that withstand white-box attacks",
    },
    "Confirmation": {
        "repair": "what was repaired, as a sentence",
        "alone": "points broken through this repair by itself; null if that was not tried",
        "together": "points broken through all repairs at once; null where there is only one",
        "points": "points it was tried on, of those that withstand white-box attacks",
    },
    "ProbeFinding": {
        "message": "what was seen",
        "location": "where",
    },
    "ProbeResult": {
        "rule": "stable identifier, see [probes](probes.md)",
        "title": "one line",
        "status": "`finding` means above (or below) its limit, nothing more",
        "value": "headline figure",
        "unit": "what it counts",
        "low": "lower end of the interval, where the figure is a rate",
        "high": "upper end of the interval",
        "n": "points (or units) it was measured on",
        "threshold": "limit that it was graded against, if it has one",
        "reason": "why it did not run, for `not_applicable` and `error`",
        "meaning": "what such a finding means",
        "remedy": "what to do about it",
        "sources": "citations",
        "findings": "what was seen at which place",
        "details": "further figures of this probe; its keys may grow",
        "seconds": "time spent",
    },
    "BranchRow": {
        "branch": "path of the module that ends the branch",
        "points": "points searched, classified correctly",
        "whole": "fooled by a search through the gradient of the whole network",
        "alone": "fooled by one through the gradient of the branch alone",
        "masked": "fooled by one through the gradient of all but the branch",
        "hides": "fooled with the branch masked and not through the whole gradient",
        "hidden": "fooled through the branch alone and not through the whole gradient",
        "no_gradient": "points at which no gradient comes through the branch",
        "without_correct": "classified correctly by the network whose branch answers zero",
        "without_fooled": "of these, fooled by what was found through the branch alone",
    },
    "AttackRow": {
        "name": "stable identifier, see [attacks](attacks.md)",
        "title": "one line",
        "kind": "what it goes by: `gradient`, `score`, `decision`, `transfer`, `random`, `universal`, `exact` or "
        "`repaired`",
        "role": "what it counts for: `reference`, `strong`, `challenger`, `repaired`, `second_opinion`, `exact`, or "
        "nothing (`sanity`: it leaves the ball on purpose)",
        "family": "of a white-box attack the loss that it follows, `cross_entropy` or `other_loss`; null for others",
        "robust_accuracy": "share of all drawn points that withstand it; null unless it met every correctly "
        "classified point: then `broken` of `attempted` says what was seen",
        "interval": "the same with its interval",
        "broken": "correctly classified points that it broke, by fresh scoring",
        "attempted": "points that it was run on",
        "new": "points that nothing before it had broken",
        "queries": "evaluations that the attack itself asked for, over all points",
        "forwards": "forward passes, counted in points, fresh scoring included",
        "backwards": "backward passes, counted in points",
        "seconds": "time spent",
        "status": "whether it ran",
        "reason": "why not",
        "settings": "its settings",
        "sources": "citations",
        "curve": "pairs of step and points broken by then",
        "part": "the essential part of the search that it belongs to; empty for attacks that no verdict needs",
        "decisive": "whether an error of it leaves the verdict open",
    },
    "Verdict": {
        "label": "the verdict, see [the rule](verdict.md)",
        "sentence": "the verdict in one sentence",
        "mechanisms": "likely causes, for `masked` and `suspect`",
        "reasons": "what the label rests on, weightiest first",
    },
    "Partial": {
        "reason": "why the audit ended before it was finished, as a sentence",
        "judged": "whether its verdict had been reached before",
    },
    "Claim": {
        "claimed": "robust accuracy given with `--claim`",
        "status": "`refuted` when the upper confidence bound of the best known accuracy is below the claim",
    },
}

#: Sections of the report that are plain objects.
SECTIONS: dict[str, dict[str, str]] = {
    "tool": {"name": "always `maskaudit`", "version": "its version"},
    "environment": {
        "python": "version",
        "torch": "version",
        "torchattacks": "version, or null when it is not installed",
        "platform": "operating system",
        "cpus": "processors of the machine",
        "threads": "threads that torch used",
        "device": "device that the model ran on",
    },
    "target": {
        "source": "the model as the user named it",
        "format": "what kind of source it was",
        "sha256": "digest of the file, or of the state where there is no file; empty for a plain callable",
        "parameters": "number of scalar parameters",
        "classes": "number of classes",
        "arch": "`--arch` as given",
        "weights": "`--weights` as given",
        "architecture": "architecture that the file names",
        "method": "training method that the file names",
        "outputs": "kind of output, as detected or given: `logits`, `log-probabilities`, `probabilities`, `votes`, "
        "`sigmoids`, `one-logit` or `one-probability`",
        "random": "whether the model answers at random",
        "caveats": "what the verdict states of itself where answers depend on more than the input, as sentences",
        "hopeless": "why no attack can say anything, where the audit stopped at once; else empty",
        "depends_on": "what answers depend on besides the input: `batch`, `state` between calls, `random`",
        "reject_class": "index of the refusal output, or null",
        "trusted_code": "code that ran because the user named it",
    },
    "threat": {
        "norm": "`Linf` or `L2`",
        "eps": "radius in input units",
        "bounds": "smallest and largest input value",
        "features": "only with `--features`: `low`, `width`, `scale` (radius as a share of ε), `step` and `groups` of "
        "the columns; inputs are then shares of each range",
    },
    "settings": {
        "seed": "seed of everything random",
        "budget": "name of the budget",
        "samples": "points drawn",
        "precision": "half-width of the interval of best-known accuracy that was asked for, or null",
        "looks": "numbers of points at which the verdict is considered; the audit stops at the first that decides",
        "data": "data source",
        "split": "part of it",
        "input_shape": "shape of one input",
        "mean": "normalisation given, or null",
        "std": "normalisation given, or null",
        "batch_size": "largest number of points per pass; by default 256, fewer for large inputs",
        "memory": "most bytes that each process was allowed to take (`--memory`), or null",
        "select": "`--select` as given",
        "ignore": "`--ignore` as given",
        "left_out": "probes and attacks that were left out on request, with the essential part that each belongs to",
        "extra_attacks": "`--attack` as given",
        "branches": "`--branch` as given",
        "draws": "forward passes averaged per evaluation; above 1 for random models only",
        "fail_on": "`--fail-on` as given",
        "black_box": "whether the model was only asked, so that the audit has no verdict on gradients",
        "certify": "whether points were to be proven robust",
        "defaults": "settings that the user did not choose, and where their values came from",
        "command": "the command line",
    },
    "accuracy": {
        "clean": "without an attack",
        "reference": "under the reference attack, as a claim is usually computed",
        "strong_reference": "under every white-box attack, any loss",
        "best_known": "under every attack; the upper end of what the model can claim; like the two before it null "
        "where no attack ran",
        "certified": "a certified lower bound, if one was given or `--certify` computed it, with `low` at the "
        "bound and `high` at 1; else null",
    },
    "masking": {
        "gradient_level": "share of points that only challengers broke",
        "loss_level": "share of points that white-box attacks broke on another loss than cross-entropy only",
        "screen": "the indicators that measure the gradient itself: `fired`, `reasons`, `indicators`",
        "rule": "the constants of the verdict as used; `limits` has per level its own, the points `drawn` that they "
        "are shares of, and why these prove nothing, if so",
        "searched": "drawn points, from the first on, that challengers searched wherever they could reveal something",
        "matched": "drawn points, from the first on, on which cross-entropy had the effort of all losses",
        "unfinished": "why the search ended before the verdict was decided, if it did",
        "traced": "the mechanisms that the trace located, with what their repair broke, as the judge was given",
    },
    "power": {
        "passed": "whether the search found enough known answers; null when it was not checked",
        "method": "`recapture`, `planted` or `none`",
        "sentence": "the outcome in words",
        "value": "share of known answers found",
        "low": "lower end of its interval",
        "high": "upper end of its interval",
        "n": "known answers",
        "random_search_found": "how many of the planted answers blind search found, for `planted`",
    },
    "points": {
        "index": "number of each drawn point in its data set",
        "label": "its label",
        "predicted": "the model's clean answer",
        "correct": "whether that is the label",
        "broken_by": "names of the attacks that broke it",
        "certified": "whether bounds prove it robust; only with `--certify`, and where bounds apply",
    },
    "evidence": {"file": "name of the evidence file", "sha256": "its digest"},
    "figures": {
        "eps_curve": "accuracies over a range of radii, on a sample",
        "surface": "the margin on a plane through one point",
        "strips": "clean inputs and their adversarial examples",
    },
    "trace": {
        "kind": "`module`, `torchscript` or `callable`",
        "points": "points that were traced",
        "output_kind": "what the answers look like",
        "gradient": "the gradient of the margin as a whole: connected, zero share, agreement per step size",
        "culprits": "suspects, most certain first: mechanism, location, confidence, sentence, remedy",
        "repairs": "what the repaired attack repairs",
        "flow": "gradient through each operation, worst first",
        "cuts": "places where data pass and the gradient does not",
        "estimators": "straight-through estimators: sums or functions with the gradient of a trend, no faults",
        "functions": "custom backward functions held against differences of their own forward",
        "randomness": "source and effect of random answers, or null",
        "optimises": "places where the forward pass itself optimises",
        "forks": "where branches meet again: the modules that end them, and how many ways have none",
        "batch_dependent": "first place where an answer depends on the rest of the batch, or null",
        "shrinks": "the operation that brings scores so close together that cross-entropy follows all classes",
        "ops": "number of operations seen",
        "sentence": "the outcome in words",
    },
    "plan": {
        "plan_version": "version of the plan's form; 1",
        "source": "`trace`: made from the trace and the probes; `file`: given with `--plan`",
        "stages": "one entry per stage in the order they ran: its settings as in `plan.json`, the attack that it is "
        "booked under (`row`), and what it attempted, broke and cost",
    },
    "timing": {
        "total_seconds": "duration of the audit",
        "forwards": "forward passes in all, counted in points",
        "backwards": "backward passes in all",
        "peak_memory": "most bytes that the process, or a worker of it, held at one time since it began, or null",
        "points_per_pass": "the batch size at the end: lower than `settings.batch_size` where memory ran out",
    },
}

#: The rest of the top level.
TOP: dict[str, str] = {
    "schema_version": "1. A reader refuses a higher number, and ignores keys that it does not know",
    "branches": "one entry per branch named with `--branch`",
    "notes": "caveats, as sentences",
    "partial": "null for a finished audit; else `reason`, why it ended before it was finished. The label is then "
    "`inconclusive` unless the verdict had been reached before",
}

#: Keys of the gate's configuration that are no options of an audit.
GATE_MODEL: dict[str, str] = {
    "name": "what the model is called in the summary; the file's name if left out",
    "model": "the model, as in `maskaudit check MODEL`; needed",
}
GATE_BASELINE: dict[str, str] = {
    "rule": "a probe's rule, `maskaudit-verdict`, the id of a mechanism, or `maskaudit-claim`; needed",
    "module": "module path as the report names it; any if left out",
    "op": "operation as the report names it; any if left out",
    "cause": "the finding's message (its figures do not matter), or the mechanism; any if left out",
    "model": "name of the only model that it is meant for",
    "reason": "why it is accepted; needed",
    "expires": "last day on which it holds; needed",
    "accept_masked": "`true` lets it accept a proven verdict or a refuted claim as well",
}
