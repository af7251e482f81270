"""The losses: of pixels, over all levels of a legend; of patches, over their classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from geoflow.errors import ModelError
from geoflow.learning.options import LossForm
from geoflow.learning.samples import IGNORE
from geoflow.legends import Legend

_SURE = 1e-12
"""Least probability that a logarithm is taken of."""


def class_weights(
    counts: NDArray[np.int64], cap: float, scheme: str = "inverse-sqrt", beta: float = 0.999999
) -> NDArray[np.float32]:
    """Weight of each class by its number of pixels, within 1/cap..cap of the middle class, with mean 1 over the pixels.

    Parameters
    ----------
    counts : int64 array, one value a class
        Labelled pixels, all positive.
    cap : float
        At least 1; 1 makes all weights 1.
    scheme : str
        ``inverse-sqrt``: the inverse square root of the share. ``effective-number``: the inverse of the effective
        number of samples (1 - beta^n) / (1 - beta) (Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of
        Samples"). ``none``: 1.
    beta : float
        Of ``effective-number``; 1 / (1 - beta) pixels of a class are as good as any number more.
    """
    share = counts / counts.sum()
    if scheme == "none":
        return np.ones(len(counts), np.float32)
    if scheme == "effective-number":
        # 1 - beta^n, without the cancellation that powers of a number so close to 1 suffer.
        rarity = 1 / -np.expm1(np.maximum(counts, 1) * np.log(beta))
        weight = (rarity / np.median(rarity)).clip(1 / cap, cap)
    else:
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
    form : LossForm
        Which loss it is; ``robustness`` is that of ``generalised`` alone.

    Raises
    ------
    ModelError
        If the number of level weights is not that of the levels, or ``robustness`` is not within 0..1.

    Notes
    -----
    With p the probability of the label's group on a level, and b that of the likeliest group there:
    ``cross-entropy`` is -log p; ``focal`` is -(1 - p)^gamma log p (Lin et al. 2017, "Focal Loss for Dense Object
    Detection", eq. 4), which learns least from what is plain already, and most from labels that are wrong;
    ``bootstrapped`` is -beta log p - (1 - beta) log b (Reed et al. 2015, "Training Deep Neural Networks on Noisy Labels
    with Bootstrapping", the hard kind): the net's own guess is a label too.
    """

    member: Tensor
    leader: Tensor
    weights: Tensor

    def __init__(
        self,
        legend: Legend,
        classes: Sequence[int],
        weights: NDArray[np.float32],
        level_weights: Sequence[float] | None,
        robustness: float | tuple[float, float],
        form: LossForm | None = None,
    ) -> None:
        super().__init__()
        self.form = form or LossForm()
        levels = legend.levels
        self.level_weights = tuple(level_weights) if level_weights is not None else (1.0,) * len(levels)
        if len(self.level_weights) != len(levels):
            raise ModelError(f"{len(self.level_weights)} level weights for the {len(levels)} levels of {legend.name!r}")
        self.robustness = _per_level(robustness, len(levels))
        groups = [np.array([legend.ancestor(c, level) for c in classes]) for level in levels]
        # member[level, a, b]: 1 where class b lies in the same group as class a, seen from that level.
        member = np.stack([group[:, None] == group[None, :] for group in groups]).astype(np.float32)
        self.register_buffer("member", torch.from_numpy(member))
        first = member.argmax(axis=2) == np.arange(len(classes))
        # leader[level, a]: True for one class of each group, so that sums over leaders are sums over groups.
        self.register_buffer("leader", torch.from_numpy(first))
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
        last = len(self.level_weights) - 1
        for level, (level_weight, q) in enumerate(zip(self.level_weights, self.robustness, strict=True)):
            if level < last:
                # The summed probability of the label's group. Where it underflows, the deepest level still teaches.
                group = (probability * self.member[level][label]).sum(dim=1).clamp_min(_SURE).log()
            else:
                group = log_p.gather(1, label[:, None])[:, 0]
            total = total + level_weight * (weight * self._penalty(group, probability, level, q)).sum()
        whole = weight.sum() * sum(self.level_weights)
        if self.form.dice or self.form.jaccard:
            total = total + whole * self._overlap(probability, label)
        return total, whole

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the labelled pixels; see `terms`."""
        total, weight = self.terms(logits, target)
        return total / weight.clamp_min(torch.finfo(weight.dtype).tiny)

    def _penalty(self, log_p: Tensor, probability: Tensor, level: int, q: float) -> Tensor:
        """Loss (pixel) of a level, from log p of the label's group (pixel) and all probabilities (pixel, class)."""
        kind = self.form.loss
        if kind == "focal":
            return -((1 - log_p.exp()).clamp_min(_SURE) ** self.form.focal_gamma) * log_p
        if kind == "bootstrapped":
            likeliest = (probability @ self.member[level]).amax(dim=1).clamp_min(_SURE).log()
            return -self.form.bootstrap * log_p - (1 - self.form.bootstrap) * likeliest
        if kind == "cross-entropy" or q == 0:
            return -log_p
        return (1 - torch.exp(q * log_p)) / q

    def _overlap(self, probability: Tensor, label: Tensor) -> Tensor:
        """1 - Dice and 1 - Jaccard of probabilities (pixel, class) and labels (pixel), weighted and meant over levels.

        Over the groups that are labelled in this batch: of others there is no overlap to better. A ratio of sums over
        the batch, so that its mean over ranks is not the value of their joint batch; `terms` weighs it by labels.
        Milletari et al. 2016, "V-Net"; Rahman and Wang 2016, "Optimizing Intersection-Over-Union in Deep Neural
        Networks for Image Segmentation".
        """
        summed = probability.new_zeros(())
        for member, leader, level_weight in zip(self.member, self.leader, self.level_weights, strict=True):
            truth, said = member[label], probability @ member
            both, area, sizes = (said * truth).sum(dim=0), said.sum(dim=0), truth.sum(dim=0)
            dice = 1 - 2 * both / (area + sizes).clamp_min(_SURE)
            jaccard = 1 - both / (area + sizes - both).clamp_min(_SURE)
            present = leader & (sizes > 0)
            missed = (self.form.dice * dice + self.form.jaccard * jaccard) * present
            summed = summed + level_weight * missed.sum() / present.sum()
        return summed / sum(self.level_weights)


class MultiLabelLoss(nn.Module):
    """The loss of labels of patches: each class is there or not.

    Parameters
    ----------
    weights : float32 tensor, one value a class
        How much a positive label weighs, against 1 of a negative one; not used by ``asymmetric``.
    form : str
        ``bce``: binary cross-entropy. ``focal``: weighted by (1 - p)^2, p being the probability of what is labelled
        (Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 4). ``asymmetric``: negatives that the net finds
        unlikely hardly count, since most labels are negative; weighted by p^4, p less a margin of 0.05 (Ridnik et al.
        2021, "Asymmetric Loss For Multi-Label Classification").
    """

    weights: Tensor

    GAMMA, NEGATIVE_GAMMA, MARGIN = 2.0, 4.0, 0.05

    def __init__(self, weights: Tensor, form: str = "bce") -> None:
        super().__init__()
        self.form = form
        self.register_buffer("weights", weights)

    def terms(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss as the sum over patches and classes, and their number; see `HierarchyLoss.terms`."""
        number = logits.new_tensor(float(logits.numel()))
        return self(logits, target) * number, number

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over patches and classes: float32 logits (n, class), float32 labels of 0 and 1 (n, class)."""
        if self.form == "bce":
            return functional.binary_cross_entropy_with_logits(logits, target, pos_weight=self.weights)
        p = torch.sigmoid(logits)
        if self.form == "asymmetric":
            shifted = (p - self.MARGIN).clamp_min(0)
            missed = -target * functional.logsigmoid(logits)
            return (missed - (1 - target) * shifted**self.NEGATIVE_GAMMA * (1 - shifted).clamp_min(_SURE).log()).mean()
        plain = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=self.weights, reduction="none")
        wrong = target * (1 - p) + (1 - target) * p
        return (wrong**self.GAMMA * plain).mean()


def _per_level(robustness: float | tuple[float, float], levels: int) -> tuple[float, ...]:
    """The q of each level, coarsest first; a legend of one level has only a deepest one."""
    coarsest, deepest = robustness if isinstance(robustness, tuple) else (robustness, robustness)
    if not 0 <= min(coarsest, deepest) <= max(coarsest, deepest) <= 1:
        raise ModelError(f"robustness must be within 0..1, not {robustness}")
    return tuple(deepest + (coarsest - deepest) * up / max(1, levels - 1) for up in reversed(range(levels)))
