"""Fréchet and kernel distance between two sets of pictures.

torchmetrics has both for its Inception network. Here they are ten lines each, tested against it: it is no dependency
of the package (a notebook on Colab has it not), takes seconds to import, draws the subsets of the kernel distance from
the global random state, and its eigenvalues of a product of covariances lose half of the digits where one is singular.
"""

import torch

from minidiff.errors import check_whole
from minidiff.metrics.features import check_pictures, features_of, load_features

ENOUGH = 10  # pictures for each feature, below which the Fréchet distance is mostly its own bias


class Distance(float):
    """A distance that prints what it was measured with: its features and the number of pictures on both sides.

    A float for arithmetic and comparison; `.value` is the bare number, `.spread` the standard deviation over subsets
    (kernel distance), `.warning` what speaks against trusting it, or "".
    """

    def __new__(cls, value, *, name, features, dim, counts, spread=None, warning=""):
        self = super().__new__(cls, value)
        self.value, self.name, self.features, self.dim, self.counts = float(value), name, features, dim, tuple(counts)
        self.spread, self.warning = spread, warning
        return self

    def __reduce__(self):  # a float's own way to copy and pickle knows nothing of the rest
        return _rebuild, (self.value, {key: value for key, value in vars(self).items() if key != "value"})

    def __str__(self):
        spread = "" if self.spread is None else f" ± {self.spread:.2g}"
        warning = f"; {self.warning}" if self.warning else ""
        real, fake = self.counts
        return (
            f"{self.name} {self.value:.3g}{spread} ({self.features} features, {self.dim} numbers;"
            f" {real} against {fake} pictures{warning})"
        )

    __repr__ = __str__


def _rebuild(value, rest):
    return Distance(value, **rest)


def frechet_distance(real, fake, features, *, batch_size=256):
    """The squared Fréchet distance between Gaussians fitted to the features of two sets of pictures, a `Distance`.

    real (N, C, H, W) and fake (M, C, H, W) are floats in [-1, 1]. features: a name for `load_features`, or a function
    from pictures (B, C, H, W) to (B, D). Compare values of the same features and the same counts only: the distance is
    biased upwards, the more the fewer pictures there are. It is FID (Heusel et al. 2017, eq. 6) if the features are
    those of Inception and the pictures 50,000, and nothing by that name otherwise.
    Raises ValueError for fewer than two pictures, for shapes that differ, and for values outside [-1, 1].
    """
    label, a, b = _both(real, fake, features, batch_size)
    fewest, dim = min(len(a), len(b)), a.shape[1]
    warning = ""
    if fewest <= dim:
        warning = f"a covariance of {dim} numbers is singular with {fewest} pictures: take {ENOUGH * dim}"
    elif fewest < ENOUGH * dim:
        warning = f"biased upwards by fewer than {ENOUGH * dim} pictures"
    value, counts = frechet(a, b), (len(a), len(b))
    return Distance(value, name="Fréchet distance", features=label, dim=dim, counts=counts, warning=warning)


def kernel_distance(real, fake, features, *, subsets=50, subset_size=None, seed=0, batch_size=256):
    """The squared maximum mean discrepancy of two sets' features with a cubic kernel, a `Distance` with `.spread`.

    Unlike the Fréchet distance its expectation does not depend on the number of pictures: around 0, also below it, for
    equal distributions (Binkowski et al. 2018, section 3; with Inception's features it is KID). It is the mean over
    `subsets` pairs of random subsets of `subset_size` pictures, by default half of the smaller set, at most 500; the
    spread is their standard deviation. seed: of the subsets. Other arguments and errors as in `frechet_distance`.
    """
    label, a, b = _both(real, fake, features, batch_size)
    fewest = min(len(a), len(b))
    subset_size = min(max(fewest // 2, 2), 500) if subset_size is None else subset_size
    for name, value, least in (("subsets", subsets, 1), ("subset_size", subset_size, 2), ("seed", seed, 0)):
        check_whole(name, value, least)
    if subset_size > fewest:
        raise ValueError(
            f"subset_size must be at most {fewest}, the number of pictures in the smaller set, got {subset_size}"
        )
    generator = torch.Generator().manual_seed(seed)

    def subset(of):
        return of[torch.randperm(len(of), generator=generator)[:subset_size]]

    values = torch.tensor([kernel(subset(a), subset(b)) for _ in range(subsets)], dtype=torch.float64)
    value, spread, counts = values.mean().item(), values.std(correction=0).item(), (len(a), len(b))
    return Distance(value, name="Kernel distance", features=label, dim=a.shape[1], counts=counts, spread=spread)


def frechet(a, b):
    """|mean a - mean b|^2 + trace(A + B - 2 (A B)^(1/2)) for features a (N, D), b (M, D) of covariances A, B; a float.

    The trace of (A B)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2): no root of a complex eigenvalue.
    """
    cov_a, cov_b = (torch.cov(part.double().T).reshape(part.shape[1], -1) for part in (a, b))
    gap = (a.double().mean(0) - b.double().mean(0)).square().sum()
    shared = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    return max((gap + cov_a.trace() + cov_b.trace() - 2 * shared).item(), 0.0)  # rounding may leave it below 0


def _root(covariance):
    """The symmetric square root of a covariance (D, D)."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel(a, b):
    """The unbiased estimate of the squared maximum mean discrepancy of features a (N, D), b (M, D); a float.

    The kernel is (x.y / D + 1)^3. Leaving out the pairs of a picture with itself makes it unbiased.
    """
    a, b = a.double(), b.double()

    def mean_within(x):
        values = (x @ x.T / x.shape[1] + 1) ** 3
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    across = ((a @ b.T / a.shape[1] + 1) ** 3).mean()
    return (mean_within(a) + mean_within(b) - 2 * across).item()


def _both(real, fake, features, batch_size):
    """What the features are called, and those of both sets: (name, (N, D), (M, D))."""
    for name, pictures in (("real", real), ("fake", fake)):
        check_pictures(pictures, name)
        if len(pictures) < 2:
            raise ValueError(f"{name} has {len(pictures)} picture; a distance of distributions needs at least 2 of it")
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"real and fake must have pictures of the same shape, got {tuple(real.shape[1:])} and"
            f" {tuple(fake.shape[1:])}; resize one of them"
        )
    features = load_features(features) if isinstance(features, str) else features
    label = getattr(features, "name", None) or getattr(features, "__name__", None) or type(features).__name__
    return label, features_of(real, features, batch_size), features_of(fake, features, batch_size)
