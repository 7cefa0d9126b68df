"""Exact search for a counterexample on a small rectifier network: a mixed-integer program, solved by HiGHS.

V. Tjeng, K. Xiao, R. Tedrake, "Evaluating robustness of neural networks with mixed integer programming", ICLR 2019:
every rectifier whose sign is open between its bounds gets a binary variable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from maskaudit.bounds.linear import CHUNK, Intervals, Region
from maskaudit.bounds.network import Network

#: By how much a class must win in the program, so that the solver's tolerance (1e-6) does not make an example of a tie.
LEAST_MARGIN = 1e-5


@dataclass(frozen=True)
class Solved:
    """What the solver found: an input (…) where the other class wins, or that there is none; neither if it gave up."""

    example: Tensor | None
    none: bool


def solve(
    network: Network, region: Region, found: Intervals, row: Tensor, *, nodes: int, seconds: float = 600
) -> Solved:
    """Look for an input of the region's box at which a margin is negative.

    Args:
        network: all of whose activations are rectifiers.
        region: of one point, without a radius; found: its intervals; row: coefficients (K,) of the margin.
        nodes: most nodes of the solver's tree; seconds: most time, for callers who need no repeatable answer.
    """
    program = _Program(network, region, found)
    coefficients, constant = program.affine(len(network.steps) - 1, row.unsqueeze(0))
    program.add(coefficients, -np.inf, -LEAST_MARGIN - constant)
    answer = milp(
        np.zeros(program.size), integrality=program.integrality, bounds=Bounds(program.low, program.high),
        constraints=program.constraints(), options={"node_limit": nodes, "time_limit": seconds},
    )  # fmt: skip
    if answer.x is None:
        return Solved(None, answer.status == 2)
    inputs = torch.from_numpy(np.asarray(answer.x[: program.inputs])).view(network.steps[0].shape)
    return Solved(torch.minimum(torch.maximum(inputs, region.low[0]), region.high[0]), False)


class _Program:
    """Variables: the input's coordinates, then per activation its results, then a binary for each that is open."""

    def __init__(self, network: Network, region: Region, found: Intervals) -> None:
        self.network = network
        self.places = {0: 0}
        self.inputs = size = network.steps[0].shape.numel()
        low, high = [region.low.flatten().numpy()], [region.high.flatten().numpy()]
        for number in network.activations:
            self.places[number] = size
            read = network.steps[number].reads[0]
            size += network.steps[number].shape.numel()
            low.append(found.low[read].flatten().clamp_min(0).numpy())
            high.append(found.high[read].flatten().clamp_min(0).numpy())
        gates = {
            number: ((found.low[read] < 0) & (found.high[read] > 0)).flatten().numpy().nonzero()[0]
            for number in network.activations
            for read in network.steps[number].reads
        }
        binaries = sum(map(len, gates.values()))
        self.size = size + binaries
        self.low = np.concatenate([*low, np.zeros(binaries)])
        self.high = np.concatenate([*high, np.ones(binaries)])
        self.integrality = np.concatenate([np.zeros(size), np.ones(binaries)])
        self._parts: list[tuple[sparse.csr_array, np.ndarray, np.ndarray]] = []
        for number in network.activations:
            self._rectifier(number, found, gates[number], size)
            size += len(gates[number])

    def affine(self, start: int, rows: Tensor) -> tuple[sparse.csr_array, np.ndarray]:
        """Linear functions (n, …) of a step as functions (n, size) of the variables, and constants (n,)."""
        found: dict[int, Tensor] = {}
        constant, held = torch.zeros(len(rows), dtype=torch.float64), {start: rows}
        for number in range(start, -1, -1):
            if number not in held:
                continue
            above, step = held.pop(number), self.network.steps[number]
            if number in self.places:
                found[number] = above.flatten(1)
                continue
            assert step.constant is not None
            constant = constant + (above * step.constant).flatten(1).sum(1)
            for read, part in zip(step.reads, self.network.adjoint(number, above), strict=True):
                held[read] = held[read] + part if read in held else part
        matrix = sparse.lil_array((len(rows), self.size))
        for number, part in found.items():
            matrix[:, self.places[number] : self.places[number] + part.shape[1]] = part.numpy()
        return matrix.tocsr(), constant.numpy()

    def add(self, matrix: sparse.csr_array, low: np.ndarray | float, high: np.ndarray | float) -> None:
        """Add constraints low ≤ matrix · variables ≤ high."""
        rows = matrix.shape[0]
        self._parts.append((matrix, np.broadcast_to(low, rows), np.broadcast_to(high, rows)))

    def constraints(self) -> LinearConstraint:
        """All of them."""
        matrices, lows, highs = zip(*self._parts, strict=True)
        return LinearConstraint(sparse.vstack(matrices, format="csr"), np.concatenate(lows), np.concatenate(highs))

    def _rectifier(self, number: int, found: Intervals, gates: np.ndarray, first: int) -> None:
        """a ≥ z, and a ≤ z where z ≥ 0 is known; with a binary d for the open ones a ≤ z − low·(1 − d), a ≤ high·d."""
        read = self.network.steps[number].reads[0]
        low, high = found.low[read].flatten().numpy(), found.high[read].flatten().numpy()
        used = (high > 0).nonzero()[0]
        for units in np.array_split(used, max(1, len(used) * self.size // CHUNK + 1)):
            if not len(units):
                continue
            ones = torch.zeros(len(units), len(low), dtype=torch.float64)
            ones[torch.arange(len(units)), torch.from_numpy(units)] = 1.0
            z, constant = self.affine(read, ones.view(len(units), *self.network.steps[read].shape))
            own = sparse.csr_array(
                (np.ones(len(units)), (np.arange(len(units)), self.places[number] + units)), (len(units), self.size)
            )
            on = low[units] >= 0
            self.add(own - z, constant, np.where(on, constant, np.inf))
            unsure = (~on).nonzero()[0]
            if not len(unsure):
                continue
            chosen, rows = units[unsure], np.arange(len(unsure))
            columns = first + np.searchsorted(gates, chosen)
            shape = (len(chosen), self.size)
            gate = sparse.csr_array((-low[chosen], (rows, columns)), shape)  # a − z − low·d ≤ constant − low
            self.add((own - z)[unsure] + gate, -np.inf, constant[unsure] - low[chosen])
            self.add(own[unsure] - sparse.csr_array((high[chosen], (rows, columns)), shape), -np.inf, 0.0)
