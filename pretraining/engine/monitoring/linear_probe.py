"""A linear probe: how well frozen patch features tell organs apart, by logistic regression and Dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_meddino.networks.vit import VisionTransformer
from pretraining.engine.monitoring.fixed_slices import patch_features
from pretraining.engine.monitoring.linear_probe_data import IGNORED, LabelledSlice, ProbeData

L2 = 1e-4
"""Weight of half the squared coefficients beside the mean loss, for features of variance 1. Fixed rather than tuned:
only so can the numbers of a run be compared."""

ITERATIONS = 200
"""Of L-BFGS, at most; it usually stops before."""


@dataclass(frozen=True)
class LinearClassifier:
    """Multinomial logistic regression on standardised features."""

    mean: Tensor
    """``(D,)``."""
    std: Tensor
    """``(D,)``."""
    weight: Tensor
    """``(C, D)``."""
    bias: Tensor
    """``(C,)``."""

    def __call__(self, features: Tensor) -> Tensor:
        """Map ``(..., D)`` to logits ``(..., C)``."""
        return F.linear((features - self.mean) / self.std, self.weight, self.bias)


@dataclass(frozen=True)
class ProbeResult:
    """Dice on the validation slices."""

    dice: dict[str, float]
    """Of each class that occurs in them, by name."""
    mean: float
    """Over these classes."""

    def values(self) -> dict[str, float]:
        """Return metrics by name: ``probe/dice`` and ``probe/dice/<class>``."""
        return {"probe/dice": self.mean} | {f"probe/dice/{name}": value for name, value in self.dice.items()}


def linear_probe(vit: VisionTransformer, data: ProbeData, device: torch.device | str = "cpu") -> ProbeResult:
    """Fit a linear classifier to the patch features of a frozen network and judge it on other cases.

    Draws no random numbers: the same weights give the same result.

    Args:
        vit: In evaluation mode.
        data: From ``read_probe_data``.
        device: Where ``vit`` is.

    Raises:
        ValueError: The network is in training mode.
    """
    features = patch_features(vit, [labelled.image for labelled in data.train], device)
    targets = [
        patch_fractions(labelled.classes.to(device), (grid.shape[0], grid.shape[1]), len(data.names) + 1)
        for labelled, grid in zip(data.train, features, strict=True)
    ]
    flat = torch.cat([grid.flatten(0, 1) for grid in features])
    classifier = fit_classifier(flat, torch.cat([fractions.flatten(0, 1) for fractions in targets]))
    judged = patch_features(vit, [labelled.image for labelled in data.validation], device)
    return dice(classifier, judged, data.validation, data.names)


def patch_fractions(classes: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """Return the share of each class in every patch, ``(h, w, C)``: a small organ need not own a patch to be learned.

    Args:
        classes: ``(H, W)`` indices; ignored pixels belong to no class.
        grid: H and w.
        count: C, background included.
    """
    each = torch.stack([(classes == index).float() for index in range(count)])
    return F.adaptive_avg_pool2d(each[None], grid)[0].permute(1, 2, 0)


def fit_classifier(
    features: Tensor, targets: Tensor, *, l2: float = L2, iterations: int = ITERATIONS
) -> LinearClassifier:
    """Minimise mean cross-entropy + l2 / 2 * |weight|^2 by L-BFGS over all patches at once, from zero.

    Args:
        features: ``(N, D)``.
        targets: ``(N, C)``, shares of the classes.
        l2: Weight of the penalty.
        iterations: At most.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    standardised = (features - mean) / std
    weight = features.new_zeros(targets.shape[1], features.shape[1], requires_grad=True)
    bias = features.new_zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_shares = F.linear(standardised, weight, bias).log_softmax(-1)
        value = -(targets * log_shares).sum(-1).mean() + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return LinearClassifier(mean, std, weight.detach(), bias.detach())


def dice(
    classifier: LinearClassifier, features: Sequence[Tensor], slices: Sequence[LabelledSlice], names: Sequence[str]
) -> ProbeResult:
    """Return the Dice of each class over all pixels of the slices together; logits are brought to pixels bilinearly.

    Args:
        classifier: Of background and ``names``.
        features: ``(h, w, D)`` of each slice.
        slices: With their labels.
        names: Of the classes.
    """
    both = torch.zeros(len(names) + 1, dtype=torch.float64)
    sizes = torch.zeros_like(both)
    reference_sizes = torch.zeros_like(both)
    for grid, labelled in zip(features, slices, strict=True):
        logits = classifier(grid).permute(2, 0, 1)[None]
        pixels = F.interpolate(logits, labelled.classes.shape, mode="bilinear", align_corners=False)
        reference = labelled.classes.long()
        counted = reference != IGNORED
        predicted, reference = pixels[0].argmax(0).cpu()[counted], reference[counted]
        both += torch.bincount(reference[predicted == reference], minlength=len(both))
        sizes += torch.bincount(predicted, minlength=len(both)) + torch.bincount(reference, minlength=len(both))
        reference_sizes += torch.bincount(reference, minlength=len(both))
    found = {name: float(2 * both[i] / sizes[i]) for i, name in enumerate(names, start=1) if reference_sizes[i] > 0}
    return ProbeResult(found, sum(found.values()) / len(found))
