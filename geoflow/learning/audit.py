"""Which labels of patches are suspicious: folds, surprise at what is given, and what to say instead. Plain numpy.

The loss of a patch tells of a wrong label only where the model has not learned that label: every patch is judged by
models of other folds. Such a model still errs often where a class is rare or looks like another. Labels of patches
around tell it better: land cover goes on beyond a patch's edge, and a mistake does not. `with_surroundings` weighs
both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from geoflow.errors import LabelError
from geoflow.learning.samples import HeldOut

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RINGS = (1.1, 1.5, 2.3)
"""Outer radii of the rings around a patch, in its edges: beside it (with other dates of its place), over a corner, one
further."""

LEAST_P = 1e-4
"""Probabilities are kept this far from 0 and 1: beyond, a net's confidence says nothing."""

_MOST_ROWS = 2_000_000
_PRIOR = 1.0  # a ring counts as if it held one more patch, of which the share of all patches holds the class


def place_folds(
    zone: NDArray[Any], left_m: NDArray[Any], top_m: NDArray[Any], folds: int, seed: int, cell_m: float
) -> NDArray[np.intp]:
    """Folds of whole squares of land, so that hardly a patch has a neighbour in a fold that its judge learned from.

    Parameters
    ----------
    zone, left_m, top_m : arrays, dims (patch)
        CRS (an EPSG code) and upper left corner of each patch.
    folds : int
    seed : int
    cell_m : float
        Edge of a square.

    Returns
    -------
    int array, dims (patch)
        0 to ``folds - 1``; each square goes, in random order, to the fold that has fewest patches.

    Raises
    ------
    LabelError
        If there are fewer squares than folds, or fewer than two folds.
    """
    _check_folds(folds, len(zone))
    if not cell_m > 0:
        raise LabelError(f"the squares of the folds must have a positive edge, not {cell_m:g} m")
    corner = np.stack([zone, np.floor(left_m / cell_m), np.floor(top_m / cell_m)])
    cell = np.unique(corner, axis=1, return_inverse=True)[1].ravel()
    sizes = np.bincount(cell)
    if len(sizes) < folds:
        raise LabelError(
            f"the patches lie in {len(sizes)} squares of {cell_m:g} m, too few for {folds} folds; use smaller squares "
            "or random folds"
        )
    fold_of, load = np.empty(len(sizes), np.intp), np.zeros(folds, np.int64)
    for one in np.random.default_rng([seed, 5]).permutation(len(sizes)):
        fold_of[one] = np.argmin(load)
        load[fold_of[one]] += sizes[one]
    return fold_of[cell]


def random_folds(patches: int, folds: int, seed: int) -> NDArray[np.intp]:
    """Folds of patches drawn at random, of equal size but for one; dims (patch).

    Raises
    ------
    LabelError
        If there are fewer patches than folds, or fewer than two folds.
    """
    _check_folds(folds, patches)
    found = np.empty(patches, np.intp)
    found[np.random.default_rng([seed, 5]).permutation(patches)] = np.arange(patches) % folds
    return found


def _check_folds(folds: int, patches: int) -> None:
    if not 2 <= folds <= patches:
        raise LabelError(f"folds must be at least 2 and at most the number of patches ({patches}), not {folds}")


def rings_around(
    zone: NDArray[Any], left_m: NDArray[Any], top_m: NDArray[Any], edge_m: float
) -> tuple[sparse.csr_array, ...]:
    """Which patches lie around which: for each of `RINGS` a symmetric matrix of 0 and 1, dims (patch, patch)."""
    count = len(zone)
    pairs, reach = [np.empty((0, 2), np.intp)], [np.empty(0)]
    for one in np.unique(zone):
        at = np.flatnonzero(zone == one)
        corner = np.stack([left_m[at], top_m[at]], axis=1) / edge_m
        near = cKDTree(corner).query_pairs(RINGS[-1], output_type="ndarray")
        pairs.append(at[near])
        reach.append(np.hypot(*(corner[near[:, 0]] - corner[near[:, 1]]).T))
    (first, second), distance = np.concatenate(pairs).T, np.concatenate(reach)
    found, inner = [], -1.0
    for outer in RINGS:
        here = (distance > inner) & (distance <= outer)
        i, j = np.concatenate([first[here], second[here]]), np.concatenate([second[here], first[here]])
        found.append(sparse.csr_array((np.ones(len(i)), (i, j)), shape=(count, count)))
        inner = outer
    return tuple(found)


def with_surroundings(
    probability: NDArray[Any], given: Bools, rings: tuple[sparse.csr_array, ...], fold: NDArray[np.intp], seed: int = 0
) -> Floats:
    """Probabilities of the classes of patches from the image and from what lies around.

    A logistic regression that all classes share, of the log-odds of: the net's probability, the share of all patches
    with the class, its share in each ring, and the mean of the net's probabilities in the nearest ring. It is learned
    from the other folds: of a patch's own labels nothing goes into its judgement.

    Parameters
    ----------
    probability : float array, dims (patch, class)
        Out-of-fold: no net judged a patch that it learned from.
    given : bool array, dims (patch, class)
    rings : tuple of sparse arrays
        From `rings_around`; without any, the net's probabilities are only calibrated.
    fold : int array, dims (patch)
    seed : int
        Of the pairs of patch and class that it is learned from where there are millions.

    Returns
    -------
    float64 array, dims (patch, class)
    """
    found = np.empty(given.shape)
    here = log_odds(probability)
    for one in np.unique(fold):
        held = fold == one
        share = given[~held].mean(axis=0).clip(LEAST_P, 1 - LEAST_P)
        sources = [(ring, given.astype(float), share) for ring in rings]
        sources += [(ring, np.asarray(probability, float), np.mean(probability, axis=0)) for ring in rings[:1]]
        around = [log_odds(_shares(ring, values, prior)) for ring, values, prior in sources]
        features = np.stack([here, np.broadcast_to(log_odds(share), here.shape), *around], axis=-1)
        flat, target = features[~held].reshape(-1, features.shape[-1]), given[~held].ravel()
        if len(flat) > _MOST_ROWS:
            some = np.random.default_rng([seed, 6]).choice(len(flat), _MOST_ROWS, replace=False)
            flat, target = flat[some], target[some]
        weights = fit_logistic(flat, target)
        found[held] = _sigmoid(features[held] @ weights[:-1] + weights[-1])
    return found


def _shares(ring: sparse.csr_array, values: Floats, prior: Floats) -> Floats:
    """Mean of the values around each patch, drawn to ``prior`` where there are few."""
    near = ring.sum(axis=1)[:, None]
    return np.asarray((ring @ values + _PRIOR * prior) / (near + _PRIOR))


def fit_logistic(features: Floats, target: Bools, ridge: float = 1.0, steps: int = 50) -> Floats:
    """Weights of a logistic regression, the constant last, by Newton's method with a penalty on all but the constant.

    Parameters
    ----------
    features : float array, dims (row, feature)
    target : bool array, dims (row)
    ridge : float
        Half of it times the sum of squared weights is added to the sum of losses.
    steps : int
        At most.
    """
    x = np.column_stack([features, np.ones(len(features))])
    penalty = np.append(np.full(features.shape[1], ridge), 1e-6)
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - target) + penalty * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        # Far from the optimum a whole step may overshoot and never come back.
        step *= min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        weights = weights - step
        if float(np.abs(step).max()) < 1e-6:
            break
    return weights


def log_odds(probability: NDArray[Any]) -> Floats:
    """log(p / (1 - p)), p within `LEAST_P` and 1 less that."""
    p = np.clip(np.asarray(probability, float), LEAST_P, 1 - LEAST_P)
    return np.asarray(np.log(p) - np.log1p(-p))


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -40, 40))))


def surprise(probability: NDArray[Any], given: Bools) -> Floats:
    """Binary cross-entropy of each label: -log of the probability of what is given; dims (patch, class)."""
    p = np.clip(np.asarray(probability, float), LEAST_P, 1 - LEAST_P)
    return np.asarray(-np.log(np.where(given, p, 1 - p)))


def suspicion(loss: Floats, given: Bools) -> Floats:
    """One figure a patch: the greatest surprise at a label it has, plus the greatest at one it lacks; dims (patch).

    A wrong label mostly stands in the place of the right one. Measured against the largest single surprise and the sum
    of all, this found as many or more of the sample's wrong patches (docs/how-to/audit.md).
    """
    return np.asarray(np.where(given, loss, 0).max(axis=1) + np.where(given, 0, loss).max(axis=1))


@dataclass(frozen=True, eq=False)
class Suggestions:
    """What to change: bool arrays, dims (patch, class), True where a label should go, and where one is missing."""

    remove: Bools
    add: Bools

    @property
    def any(self) -> Bools:
        """Patches of which something is to be changed."""
        return np.asarray((self.remove | self.add).any(axis=1))

    def applied(self, given: Bools) -> Bools:
        """The labels with the changes made."""
        return (given & ~self.remove) | self.add


def suggest(probability: NDArray[Any], given: Bools, confidence: float) -> Suggestions:
    """Labels that are given although improbable, and probable ones that are not.

    Parameters
    ----------
    probability, given : arrays, dims (patch, class)
    confidence : float
        Least probability that the label is other than given, above 0.5 and below 1.

    Raises
    ------
    LabelError
        If the confidence is out of range.
    """
    if not 0.5 < confidence < 1:
        raise LabelError(f"confidence must be above 0.5 and below 1, not {confidence:g}")
    p = np.asarray(probability, float)
    return Suggestions(given & (1 - p >= confidence), ~given & (p >= confidence))


def found_share(score: Floats, wrong: Bools, worst: float = 0.1) -> float:
    """Share of the wrong patches among the ``worst`` share of all by score; NaN if none is wrong."""
    if not wrong.any():
        return float("nan")
    return float((ranks(score)[wrong] <= np.ceil(worst * len(score))).mean())


def ranks(score: Floats) -> NDArray[np.intp]:
    """1 for the most suspicious patch; ties in the order of patches."""
    found = np.empty(len(score), np.intp)
    found[np.argsort(-score, kind="stable")] = np.arange(1, len(score) + 1)
    return found


@dataclass(frozen=True)
class FoldBlocks(HeldOut):
    """Blocks of one fold: those of all folds cover the country, each block once. ``share`` has no meaning here.

    Parameters
    ----------
    folds, fold : int
        How many, and which.
    """

    folds: int = 4
    fold: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds < 2 or not 0 <= self.fold < self.folds:
            raise LabelError(f"fold {self.fold} of {self.folds}: there must be two or more, numbered from 0")

    def blocks(self, shape: tuple[int, int]) -> Bools:
        """The blocks of the fold; bool array, dims (row, col) of blocks."""
        rows, columns = (-(-size // self.block_px) for size in shape)
        if rows * columns < self.folds:
            raise LabelError(
                f"{rows * columns} blocks of {self.block_px} px are too few for {self.folds} folds; use smaller blocks"
            )
        order = np.random.default_rng([self.seed, 7]).permutation(rows * columns)
        return np.asarray(order.reshape(rows, columns) % self.folds == self.fold)

    def mask(self, shape: tuple[int, int], y: slice | None = None, x: slice | None = None) -> Bools:
        """Its pixels: bool array, dims (y, x), of the whole grid or of the part ``y``, ``x``."""
        parts = (slice(None) if part is None else part for part in (y, x))
        rows, columns = (np.arange(n)[part] // self.block_px for n, part in zip(shape, parts, strict=True))
        return self.blocks(shape)[np.ix_(rows, columns)]

    def record(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Plain values for the model's card."""
        return {**super().record(shape), "folds": self.folds, "fold": self.fold}


LOSS_NODATA = 65535
AGREED, DOUBTED = 1, 2
_PARTS = 250  # maps keep probabilities as parts of this


def doubts(
    probabilities: NDArray[np.uint8], codes: tuple[int, ...], given: NDArray[Any], confidence: float
) -> dict[str, NDArray[Any]]:
    """How the labels of pixels fare under a map that was made without them.

    Parameters
    ----------
    probabilities : uint8 array, dims (class, y, x)
        Parts of 250; 255 where nothing was mapped.
    codes : tuple of int
        Of the classes, ascending.
    given : codes, dims (y, x)
        The labels; 0 is nodata.
    confidence : float
        Least probability of another class for a label to be doubted.

    Returns
    -------
    dict of arrays, dims (y, x)
        ``loss``: uint16, -ln of the label's probability x 1000, 65535 where nothing was mapped or the model knows no
        such class; ``doubt``: uint8, 0 where there is no loss, 1 agreed, 2 doubted; and where doubted ``given`` and
        ``suggested`` (codes, else 0) and ``confidence`` (uint8 percent of the suggested class, else 255).
    """
    known = np.isin(given, codes) & (probabilities[0] != 255)
    at = np.searchsorted(codes, np.where(known, given, codes[0]))
    own = np.take_along_axis(probabilities, at[None], axis=0)[0]
    # A probability below half a part was rounded to none.
    loss = np.rint(-1000 * np.log(np.maximum(own.astype(float), 0.5) / _PARTS))
    best = probabilities.argmax(axis=0)
    most = np.take_along_axis(probabilities, best[None], axis=0)[0]
    doubted = known & (best != at) & (most >= confidence * _PARTS)
    return {
        "loss": np.where(known, loss, LOSS_NODATA).astype(np.uint16),
        "doubt": np.where(doubted, DOUBTED, np.where(known, AGREED, 0)).astype(np.uint8),
        "given": np.where(doubted, given, 0).astype(given.dtype),
        "suggested": np.where(doubted, np.asarray(codes)[best], 0).astype(given.dtype),
        "confidence": np.where(doubted, np.rint(most * (100 / _PARTS)), 255).astype(np.uint8),
    }
