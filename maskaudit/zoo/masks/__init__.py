"""What hides the gradient of a healthy network: small wrappers, each with one culprit.

Each names its source and knows its way out: `unmasked()` is the same classifier with a usable gradient
and usable scores (protocol `maskaudit.zoo.interface.Unmaskable`), and `unmask` finds them at any depth.
"""

from maskaudit.zoo.masks.backward import FlippedBackward, NoisyBackward, RandomBackward, ZeroBackward
from maskaudit.zoo.masks.base import Mask, unmask
from maskaudit.zoo.masks.controls import ChannelsLast, Checkpointed, HalfPrecision, PerPoint, SteadyBrightness
from maskaudit.zoo.masks.inputs import (
    HonestQuantiser,
    JpegFile,
    JpegLike,
    NarrowClip,
    NumpyRoundTrip,
    QuantisedInput,
    SineInput,
    SteepFront,
    Thermometer,
)
from maskaudit.zoo.masks.layers import (
    CutBeside,
    Detach,
    KWinners,
    SignActivation,
    SteepTanh,
    binary_features,
    inserted,
    k_winners,
    nearest_neighbours,
    saturate,
)
from maskaudit.zoo.masks.loops import ChaoticFront, Purification, purified
from maskaudit.zoo.masks.outputs import (
    HardLabels,
    NearestNeighbours,
    ReverseSigmoid,
    RoundedOutput,
    ScaledLogits,
    SharpSoftmax,
    ShiftedVote,
    SineLogits,
    SoftmaxOutput,
)
from maskaudit.zoo.masks.random import (
    DropoutOn,
    InputNoise,
    ResizePad,
    SampledSmoothing,
    SampledVote,
    StochasticPruning,
    before_readout,
)

__all__ = [
    "ChannelsLast",
    "ChaoticFront",
    "Checkpointed",
    "CutBeside",
    "Detach",
    "DropoutOn",
    "FlippedBackward",
    "HalfPrecision",
    "HardLabels",
    "HonestQuantiser",
    "InputNoise",
    "JpegFile",
    "JpegLike",
    "KWinners",
    "Mask",
    "NarrowClip",
    "NearestNeighbours",
    "NoisyBackward",
    "NumpyRoundTrip",
    "PerPoint",
    "Purification",
    "QuantisedInput",
    "RandomBackward",
    "ResizePad",
    "ReverseSigmoid",
    "RoundedOutput",
    "SampledSmoothing",
    "SampledVote",
    "ScaledLogits",
    "SharpSoftmax",
    "ShiftedVote",
    "SignActivation",
    "SineInput",
    "SineLogits",
    "SoftmaxOutput",
    "SteadyBrightness",
    "SteepFront",
    "SteepTanh",
    "StochasticPruning",
    "Thermometer",
    "ZeroBackward",
    "before_readout",
    "binary_features",
    "inserted",
    "k_winners",
    "nearest_neighbours",
    "purified",
    "saturate",
    "unmask",
]
