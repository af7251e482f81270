"""The loss over all levels of a legend, forgiving of labels that are wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoflow.errors import ModelError
from geoflow.learning.samples import IGNORE
from geoflow.legends import Legend


def class_weights(counts: NDArray[np.int64], cap: float) -> NDArray[np.float32]:
    """Weight of each class: the inverse square root of its share, within 1/cap..cap, with mean 1 over the pixels."""
    share = counts / counts.sum()
    weight = np.sqrt(np.median(share) / np.maximum(share, 1e-12)).clip(1 / cap, cap)
    return (weight / (weight * share).sum()).astype(np.float32)


class HierarchyLoss(nn.Module):
    """Sum over the legend's levels of the loss of the summed probabilities.

    Parameters
    ----------
    legend : Legend
    classes : sequence of int
        Codes of the deepest level in logit order.
    weights : float32 array, one value a class
        Weight of a pixel by its labelled class.
    level_weights : sequence of float, optional
        Weight of each level, coarsest first; all 1 by default.
    robustness : float, or a pair of them
        The q of the generalised cross-entropy (1 - p^q) / q (Zhang and Sabuncu 2018, "Generalized Cross Entropy Loss
        for Training Deep Neural Networks with Noisy Labels", eq. 6): 0 is cross-entropy -log p, 1 the absolute error,
        which a wrong label hardly moves. A pair runs evenly from the coarsest level to the deepest: a wrong label is
        plain on the coarse levels, while on the deepest a large q would take every rare class for a mistake.

    Raises
    ------
    ModelError
        If the number of level weights is not that of the levels, or ``robustness`` is not within 0..1.
    """

    member: Tensor
    weights: Tensor

    def __init__(
        self,
        legend: Legend,
        classes: Sequence[int],
        weights: NDArray[np.float32],
        level_weights: Sequence[float] | None,
        robustness: float | tuple[float, float],
    ) -> None:
        super().__init__()
        levels = legend.levels
        self.level_weights = tuple(level_weights) if level_weights is not None else (1.0,) * len(levels)
        if len(self.level_weights) != len(levels):
            raise ModelError(f"{len(self.level_weights)} level weights for the {len(levels)} levels of {legend.name!r}")
        self.robustness = _per_level(robustness, len(levels))
        groups = [np.array([legend.ancestor(c, level) for c in classes]) for level in levels]
        # member[level, a, b]: 1 where class b lies in the same group as class a, seen from that level.
        member = np.stack([group[:, None] == group[None, :] for group in groups]).astype(np.float32)
        self.register_buffer("member", torch.from_numpy(member))
        self.register_buffer("weights", torch.from_numpy(weights))

    def terms(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss as numerator and denominator: sums over pixels, which may be added over batches or ranks.

        Parameters
        ----------
        logits : float32 tensor (n, class, y, x)
        target : int64 tensor (n, y, x)
            Class index, or `IGNORE`.

        Returns
        -------
        total : scalar tensor
            Of the labelled pixels' weighted losses; 0, with a gradient of 0, where none is labelled.
        weight : scalar tensor
            What to divide it by. It depends on the target alone, and carries no gradient.
        """
        classes = logits.shape[1]
        flat = logits.permute(0, 2, 3, 1).reshape(-1, classes)
        labelled = target.reshape(-1) != IGNORE
        if not labelled.any():
            return logits.sum() * 0, logits.new_zeros(())  # keeps the graph, teaches nothing
        flat, label = flat[labelled], target.reshape(-1)[labelled]
        log_p = torch.log_softmax(flat, dim=1)
        probability = log_p.exp()
        weight = self.weights[label]
        total = flat.new_zeros(())
        coarser = zip(self.member[:-1], self.level_weights[:-1], self.robustness[:-1], strict=True)
        for member, level_weight, q in coarser:
            # The summed probability of the label's group. Where it underflows, the deepest level still teaches.
            group = (probability * member[label]).sum(dim=1).clamp_min(1e-12).log()
            total = total + level_weight * (weight * _penalty(group, q)).sum()
        deepest = log_p.gather(1, label[:, None])[:, 0]
        total = total + self.level_weights[-1] * (weight * _penalty(deepest, self.robustness[-1])).sum()
        return total, weight.sum() * sum(self.level_weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the labelled pixels; see `terms`."""
        total, weight = self.terms(logits, target)
        return total / weight.clamp_min(torch.finfo(weight.dtype).tiny)


def _penalty(log_p: Tensor, q: float) -> Tensor:
    if q == 0:
        return -log_p
    return (1 - torch.exp(q * log_p)) / q


def _per_level(robustness: float | tuple[float, float], levels: int) -> tuple[float, ...]:
    """The q of each level, coarsest first; a legend of one level has only a deepest one."""
    coarsest, deepest = robustness if isinstance(robustness, tuple) else (robustness, robustness)
    if not 0 <= min(coarsest, deepest) <= max(coarsest, deepest) <= 1:
        raise ModelError(f"robustness must be within 0..1, not {robustness}")
    return tuple(deepest + (coarsest - deepest) * up / max(1, levels - 1) for up in reversed(range(levels)))
