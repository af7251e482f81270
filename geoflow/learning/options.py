"""How the nets are trained: options, resolved once, and free of torch so that a job can be checked without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from geoflow.errors import ModelError
from geoflow.learning.augment import Alterations

RGB = ("B04", "B03", "B02")
"""Band order of nets that were trained on photographs."""

WELL_KNOWN_ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Encoders that are there with any segmentation-models-pytorch, so that nobody need load it to be told."""

STRIDE_PX = 32
"""Windows are multiples of this: every encoder halves its input five times."""


SegmenterLoss = Literal["generalised", "cross-entropy", "focal", "bootstrapped"]
ClassWeights = Literal["none", "inverse-sqrt", "effective-number"]
ClassifierLoss = Literal["bce", "focal", "asymmetric"]


@dataclass(frozen=True)
class LossForm:
    """Which loss the segmenter learns by; see `geoflow.learning.losses.HierarchyLoss`.

    Parameters
    ----------
    loss : str
    focal_gamma : float
        Of ``focal``; 0 is cross-entropy.
    bootstrap : float
        The share of the label in ``bootstrapped``, 0 to 1; the rest is the net's own guess.
    dice, jaccard : float
        Weight of an added overlap term.

    Raises
    ------
    ModelError
        If a value is out of range or the loss is unknown.
    """

    loss: SegmenterLoss = "generalised"
    focal_gamma: float = 2.0
    bootstrap: float = 0.8
    dice: float = 0.0
    jaccard: float = 0.0

    def __post_init__(self) -> None:
        _check_name("loss", self.loss, SegmenterLoss)
        if not (self.focal_gamma >= 0 and self.dice >= 0 and self.jaccard >= 0 and 0 <= self.bootstrap <= 1):
            raise ModelError(
                "focal_gamma, dice and jaccard must be at least 0 and bootstrap within 0..1, not "
                f"{self.focal_gamma}, {self.dice}, {self.jaccard}, {self.bootstrap}"
            )


def _check_name(key: str, value: str, accepted: Any) -> None:
    if value not in get_args(accepted):
        raise ModelError(f"{key} {value!r}: accepted are {', '.join(get_args(accepted))}")


@dataclass(frozen=True)
class ClassifierOptions:
    """How the patch classifier is trained.

    Parameters
    ----------
    encoder : str
        See `geoflow.nets`.
    head_epochs, epochs : int
        Passes over the patches with the encoder frozen, then with all layers. Freezing helps only where the encoder
        starts from trained weights.
    batch : int
    head_lr, lr : float
        Peak learning rates of the two stages.
    weight_decay, dropout : float
    loss : str
        ``bce``, ``focal`` or ``asymmetric``, see `geoflow.learning.losses.MultiLabelLoss`.
    brightness, contrast, band_dropout : float
        See `SegmenterOptions`.
    validation : float
        Share of the patches kept apart to measure.
    seed : int
    weights : str, optional
        What the encoder starts from: a name of `geoflow weights list`, or a local safetensors file.
    weights_bands : tuple of str
        Bands of the file's first layer; a name has its own.
    weights_pickle : bool
        Whether a pickle of torch (`.pth`) will do, which is less safe to read.
    accumulate : int
        Batches whose gradients make up one step: large batches on small devices.
    clip : float
        Largest norm of the gradient; a longer one is shortened to it.
    lanes : int
        Streams that the data is read in, each with its own shards; every batch takes equal shares of them. So many
        workers at most train together, and the result depends on the lanes, not on the workers.
    keep : str
        ``last``: the weights of the last step; ``best``: those that named the validation patches best, by micro F1
        after each epoch.
    patience : int
        With ``keep: best``, training ends after so many validations in a row without a gain; 0 never ends it early.
    memory_mb : int
        For pixels of patches. Where not all fit, half of it is shuffled while the other half is read.
    calibrate : bool
        Whether to fit a temperature on the validation patches, so that probabilities are what they say; see
        [paper.md](paper.md#calibration).
    """

    encoder: str = "resnet50"
    head_epochs: int = 1
    epochs: int = 4
    batch: int = 16
    head_lr: float = 1e-3
    lr: float = 1e-3
    weight_decay: float = 1e-4
    dropout: float = 0.2
    loss: ClassifierLoss = "bce"
    brightness: float = 0.0
    contrast: float = 0.0
    band_dropout: float = 0.0
    validation: float = 0.2
    seed: int = 0
    weights: str | None = None
    weights_bands: tuple[str, ...] = RGB
    weights_pickle: bool = False
    accumulate: int = 1
    clip: float = 1.0
    lanes: int = 1
    keep: Literal["last", "best"] = "last"
    patience: int = 0
    memory_mb: int = 1024
    calibrate: bool = False

    def __post_init__(self) -> None:
        _check_name("loss", self.loss, ClassifierLoss)
        _check_common(self)
        _ = self.alterations

    @property
    def alterations(self) -> Alterations:
        """What is done to patches beside turning them."""
        return Alterations(self.brightness, self.contrast, self.band_dropout)


@dataclass(frozen=True)
class SegmenterOptions:
    """How the segmenter is trained.

    Parameters
    ----------
    architecture, encoder : str
        See `geoflow.nets`; with a classifier to start from, its encoder is taken.
    decoder_channels : tuple of int
        Widths of the decoder's five stages, coarsest first.
    context_channels : int
        Width of the context path of ``context-unet``.
    context_steps, decoder_steps, steps : int
        Steps with the context path alone (``context-unet`` only), then with all but the encoder, then with all layers.
    context_batch, context_window_px : int
        Windows in a step of the context path, and their edge: many small ones, which show more of the country.
    batch, window_px : int
        The same for the other steps.
    context_lr, decoder_lr, lr : float
        Peak learning rates of the three stages.
    encoder_lr_share : float
        Learning rate of the encoder in the last stage, as a share of ``lr``.
    weight_decay : float
    level_weights : tuple of float, optional
        Weight of each level's loss, coarsest first; all 1 by default.
    loss : str
        ``generalised``, ``cross-entropy``, ``focal`` or ``bootstrapped``: see [models.md](models.md#losses).
    robustness : float, or a pair of them
        Of ``generalised``: 0 is cross-entropy; towards 1 the loss forgives labels that the net finds very unlikely,
        because some of them are wrong. A pair runs from the coarsest level to the deepest.
    focal_gamma : float
        Of ``focal``: how little is learned from pixels that are plain already; 0 is cross-entropy.
    bootstrap : float
        Of ``bootstrapped``: the share of the label, 0 to 1; the rest is the net's own guess.
    dice, jaccard : float
        Weight of an added term for the overlap of map and labels, of each class alike.
    class_weights : str
        ``inverse-sqrt`` (of the class's share), ``effective-number`` or ``none``.
    max_class_weight : float
        Cap of the class weights; 1 switches them off.
    effective_beta : float
        Of ``effective-number``: 1 / (1 - beta) pixels of a class are as good as any number more.
    border_m : float
        Labels nearer than this to a class border, in metres, count as ``border_weight`` says; 0 trusts all alike.
    border_weight : float
        How much labels near a border count, 0 (not at all) to 1 (as all others).
    rarity, jitter : float
        See `SamplerOptions`.
    brightness, contrast : float
        Spread of a random offset (in standard deviations of a channel) and gain of each window and period, the same for
        all bands; 0 for none.
    band_dropout, period_dropout : float
        Chance that a window has to do without a band, or without a period, 0 to below 1; it never loses all.
    average : float
        Decay of the moving average of the weights that is kept in the end; 0 keeps the last weights.
    accumulate : int
        Batches whose gradients make up one step: large batches on small devices.
    clip : float
        Largest norm of the gradient; a longer one is shortened to it.
    lanes : int
        Streams that the data is read in, each with its own shards; every batch takes equal shares of them. So many
        workers at most train together, and the result depends on the lanes, not on the workers.
    keep : str
        ``last``: the weights of the last step, or their average; ``best``: those that named the pixels of
        ``validation_share`` best.
    patience : int
        With ``keep: best``, training ends after so many validations in a row without a gain; 0 never ends it early.
    validation_share : float
        With ``keep: best``, the share of the country's blocks that is set aside to choose by. Neither learned from nor
        held out: what was chosen by them is no measure of the map.
    validation_steps : int
        Steps from one validation to the next.
    map_window_px, map_halo_px : int
        Window and halo that the model maps with.
    seed, memory_mb : int
        ``memory_mb`` bounds the imagery held while drawing windows.
    weights, weights_bands, weights_pickle
        See `ClassifierOptions`; used where there is no classifier to start from.
    calibrate : bool
        Whether to fit a temperature on a tenth of the blocks, which are set aside from training for it; see
        [paper.md](paper.md#calibration).
    """

    architecture: str = "context-unet"
    encoder: str = "resnet50"
    decoder_channels: tuple[int, ...] = (128, 64, 48, 32, 32)
    context_channels: int = 48
    context_steps: int = 600
    decoder_steps: int = 20
    steps: int = 50
    context_batch: int = 32
    context_window_px: int = 64
    batch: int = 8
    window_px: int = 128
    context_lr: float = 5e-3
    decoder_lr: float = 2e-3
    lr: float = 1e-3
    encoder_lr_share: float = 0.5
    weight_decay: float = 1e-3
    level_weights: tuple[float, ...] | None = None
    robustness: float | tuple[float, float] = (0.8, 0.2)
    loss: SegmenterLoss = "generalised"
    focal_gamma: float = 2.0
    bootstrap: float = 0.8
    dice: float = 0.0
    jaccard: float = 0.0
    class_weights: ClassWeights = "inverse-sqrt"
    max_class_weight: float = 1.0
    effective_beta: float = 0.999999
    border_m: float = 0.0
    border_weight: float = 0.0
    rarity: float = 0.3
    jitter: float = 0.02
    brightness: float = 0.0
    contrast: float = 0.0
    band_dropout: float = 0.0
    period_dropout: float = 0.0
    average: float = 0.95
    accumulate: int = 1
    clip: float = 1.0
    lanes: int = 1
    keep: Literal["last", "best"] = "last"
    patience: int = 0
    validation_share: float = 0.1
    validation_steps: int = 100
    map_window_px: int = 576
    map_halo_px: int = 32
    seed: int = 0
    memory_mb: int = 512
    weights: str | None = None
    weights_bands: tuple[str, ...] = RGB
    weights_pickle: bool = False
    calibrate: bool = False

    def __post_init__(self) -> None:
        _check_common(self)
        if self.context_batch % self.lanes:
            raise ModelError(f"context_batch must be a multiple of the {self.lanes} lanes, not {self.context_batch}")
        if self.keep == "best" and not (0 < self.validation_share < 1 and self.validation_steps >= 1):
            raise ModelError(
                "keep: best needs a validation_share above 0 and below 1 and validation_steps of at least 1, not "
                f"{self.validation_share} and {self.validation_steps}"
            )
        for name in ("context_window_px", "window_px", "map_window_px"):
            size = getattr(self, name)
            if size <= 0 or size % STRIDE_PX:
                raise ModelError(f"{name} must be a multiple of {STRIDE_PX} px, not {size}")
        if not (self.border_m >= 0 and 0 <= self.border_weight <= 1):
            raise ModelError(
                f"border_m must be at least 0 and border_weight within 0..1, not {self.border_m}, {self.border_weight}"
            )
        if self.context_steps + self.decoder_steps + self.steps < 1:
            raise ModelError("context_steps, decoder_steps and steps are all 0: there would be no training")
        _ = self.loss_form, self.alterations
        _check_name("class_weights", self.class_weights, ClassWeights)
        if not (self.max_class_weight >= 1 and 0 < self.effective_beta < 1):
            raise ModelError(
                "max_class_weight must be at least 1 and effective_beta between 0 and 1, not "
                f"{self.max_class_weight}, {self.effective_beta}"
            )
        if self.class_weights == "effective-number" and self.max_class_weight == 1:
            raise ModelError(
                "class_weights: effective-number does nothing with max_class_weight 1; raise it, to 10 say"
            )

    @property
    def alterations(self) -> Alterations:
        """What is done to windows beside turning and jittering them."""
        return Alterations(self.brightness, self.contrast, self.band_dropout, self.period_dropout)

    @property
    def loss_form(self) -> LossForm:
        """What the loss is."""
        return LossForm(self.loss, self.focal_gamma, self.bootstrap, self.dice, self.jaccard)


def _check_common(options: ClassifierOptions | SegmenterOptions) -> None:
    for name in ("accumulate", "lanes", "batch"):
        if getattr(options, name) < 1:
            raise ModelError(f"{name} must be at least 1, not {getattr(options, name)}")
    if options.batch % options.lanes:
        raise ModelError(f"batch must be a multiple of the {options.lanes} lanes, not {options.batch}")
    if not options.clip > 0:
        raise ModelError(f"clip must be above 0, not {options.clip}")
    if options.keep not in ("last", "best"):
        raise ModelError(f"keep must be last or best, not {options.keep!r}")
    if options.patience < 0 or (options.patience and options.keep != "best"):
        raise ModelError(f"patience of {options.patience}: at least 0, and above it only with keep: best")
