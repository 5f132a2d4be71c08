"""k-means and principal components in plain PyTorch, on a CPU or a GPU.

The same features and the same seed give the same clusters: nothing depends on the order in which
threads add, and random numbers come from the CPU on every device.

Legend: B features, C channels, D components, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**14  # features that are looked at together: 16 MB of distances to 256 clusters
ITERATIONS = 100  # at most
TOLERANCE = 1e-4  # stop when an iteration lowers the inertia by a smaller share


@dataclass(frozen=True)
class PCA:
    """The directions in which features vary most."""

    mean: Tensor  # (C,)
    components: Tensor  # (C, D), orthonormal columns, the one of largest variance first

    def __call__(self, features: Tensor) -> Tensor:
        """Coordinates (B, D) of features (B, C), in the precision of the components."""
        return (features.to(self.mean.dtype) - self.mean) @ self.components


def fit_pca(features: Tensor, width: int, device: torch.device | None = None) -> PCA:
    """Principal components by an eigen-decomposition of the covariance, which is summed up block
    by block: only a block is on `device` and in full precision at a time.

    Args:
        features: (B, C), of any floating-point type.
        width: D; fewer if there are fewer channels.
        device: where to compute and where the result is; None: that of the features.
    """
    kind = torch.promote_types(features.dtype, torch.float32)
    mean = sum(block.to(device).double().sum(dim=0) for block in features.split(BLOCK))
    mean = (mean / len(features)).to(kind)
    scatter = mean.new_zeros(len(mean), len(mean), dtype=torch.float64)
    for block in features.split(BLOCK):
        centred = block.to(device, kind) - mean
        scatter += centred.T @ centred
    _, vectors = torch.linalg.eigh(scatter)  # in ascending order of the variance
    return PCA(mean, vectors.flip(1)[:, :width].to(kind).contiguous())


@dataclass(frozen=True)
class Quantiser:
    """From features to clusters."""

    pca: PCA
    centres: Tensor  # (K, D)

    def __call__(self, features: Tensor) -> Tensor:
        """The clusters (B,) int64 of features (B, C)."""
        return assign(self.reduce(features), self.centres)[0]

    def reduce(self, features: Tensor) -> Tensor:
        """What is clustered: principal components (B, D), of length 1."""
        return F.normalize(self.pca(features), dim=1)

    def to(self, device: torch.device) -> Quantiser:
        """The same on another device."""
        pca = PCA(self.pca.mean.to(device), self.pca.components.to(device))
        return Quantiser(pca, self.centres.to(device))


@dataclass(frozen=True)
class Clusters:
    """What `kmeans` found."""

    centres: Tensor  # (K, D)
    inertia: tuple[float, ...]  # after each iteration: mean squared distance to the nearest centre


def kmeans(
    features: Tensor, clusters: int, seed: int = 0, iterations: int = ITERATIONS
) -> Clusters:
    """Lloyd's algorithm from the start of k-means++.

    A cluster that loses all of its features moves to the feature that is farthest from its centre
    (several of them, to as many), which cannot raise the inertia.

    Args:
        features: (B, D) float.
        clusters: K.
        seed: of the start.
        iterations: at most.

    Raises:
        ValueError: there are fewer features than clusters.
    """
    if len(features) < clusters:
        raise ValueError(f"{len(features):,} boxes cannot make {clusters:,} clusters")
    centres, history = kmeans_plus_plus(features, clusters, seed), []
    for _ in range(iterations):
        labels, distances = assign(features, centres)
        history.append(distances.double().mean().item())
        if len(history) > 1 and history[-2] - history[-1] <= TOLERANCE * history[-2]:
            break
        centres = means_of(features, labels, centres)
        _fill_empty(centres, features, labels, distances)
    return Clusters(centres, tuple(history))


def kmeans_plus_plus(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Centres to start from: the first is any feature, each further one is drawn with a probability
    in proportion to the squared distance to the nearest centre so far (Arthur and Vassilvitskii,
    "k-means++: the advantages of careful seeding", SODA 2007, section 2.2).

    Args:
        features: (B, D).
        clusters: K.
        seed: of the draws.

    Returns:
        (K, D), rows of `features`; a row comes twice only if there are fewer than K different ones
        (up to rounding).
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(clusters, generator=generator, dtype=torch.float64).tolist()
    lengths = features.square().sum(dim=1)  # (B,), squared
    nearest = torch.ones_like(lengths)
    chosen = []
    for number, uniform in enumerate(draws):
        place = drawn(nearest, uniform)
        chosen.append(place)
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, in one pass over the features.
        distances = torch.addmv(lengths, features, features[place], alpha=-2) + lengths[place]
        nearest = distances if number == 0 else torch.minimum(nearest, distances)
        nearest = nearest.clamp(min=0)
        nearest[place] = 0
    return features[torch.tensor(chosen, device=features.device)]


def drawn(weights: Tensor, uniform: float) -> int:
    """The place that a uniform number in [0, 1) draws, with probabilities in proportion to
    `weights` (B,), none of them below 0; any place if all are 0.

    The sums are made on the CPU: a GPU's depend on how it divides the work.
    """
    ends = weights.cpu().double().cumsum(0)
    total = ends[-1].item()
    if total == 0:
        return int(uniform * len(ends))
    # On the right: a place without weight ends where the one before it does, and is not drawn.
    place = torch.searchsorted(ends, uniform * total, right=True)
    return min(int(place), len(ends) - 1)


def assign(features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each feature.

    Args:
        features: (B, D).
        centres: (K, D).

    Returns:
        (B,) int64, the lowest of equally near ones, and the squared distances (B,).
    """
    labels, distances = [], []
    lengths = centres.square().sum(dim=1)  # (K,)
    for block in features.split(BLOCK):
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, of which the first does not matter for the choice.
        part, label = torch.addmm(lengths, block, centres.T, alpha=-2).min(dim=1)
        labels.append(label)
        distances.append((part + block.square().sum(dim=1)).clamp(min=0))
    return torch.cat(labels), torch.cat(distances)


def means_of(features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """The mean of the features of each cluster; one without any keeps its centre.

    A product with a matrix of ones and zeros: atomic additions on a GPU come in any order.

    Args:
        features: (B, D).
        labels: (B,) of their clusters.
        centres: (K, D).
    """
    sums, counts = torch.zeros_like(centres), _counts(labels, len(centres))
    numbers = torch.arange(len(centres), device=labels.device)
    for block, label in zip(features.split(BLOCK), labels.split(BLOCK), strict=True):
        members = (numbers[:, None] == label).to(features.dtype)  # (K, b)
        sums += members @ block
    means = sums / counts.clamp(min=1)[:, None]
    return torch.where(counts[:, None] > 0, means, centres)


def _counts(labels: Tensor, clusters: int) -> Tensor:
    return torch.bincount(labels, minlength=clusters)


def _fill_empty(centres: Tensor, features: Tensor, labels: Tensor, distances: Tensor) -> None:
    """Move the centres without features to the features that are farthest from theirs."""
    empty = (_counts(labels, len(centres)) == 0).nonzero()[:, 0]
    if len(empty):
        far = distances.topk(len(empty)).indices
        centres[empty] = features[far]
