"""Improved precision and recall: how many samples look like data, and how much of the data the samples cover.

One distance cannot tell blurred samples from missing modes; these two numbers can. A set of pictures is taken for the
union of balls around its features, each as wide as the distance to the k-th nearest neighbour in the set.
"""

from typing import NamedTuple

import torch

from minidiff.errors import check_whole
from minidiff.metrics.distances import _both

ROUNDING = 1e-12  # of a squared distance in float64, as a share of the largest squared length
FEWEST = 1000  # pictures on each side, below which the values say more about their number than about the samples


class PrecisionRecall(NamedTuple):
    """`precision` and `recall`, shares in [0, 1]; prints what they were measured with."""

    precision: float
    recall: float
    features: str
    dim: int
    counts: tuple
    k: int

    def __str__(self):
        real, fake = self.counts
        few = f"; few: compare at equal counts only, or take {FEWEST}" if min(self.counts) < FEWEST else ""
        return (
            f"precision {self.precision:.3f}, recall {self.recall:.3f} ({self.features} features, {self.dim} numbers,"
            f" k = {self.k}; {real} real against {fake} fake pictures{few})"
        )


def precision_recall(real, fake, features, *, k=3, batch_size=256):
    """Improved precision and recall of `fake` against `real`, a `PrecisionRecall` (Kynkäänniemi et al. 2019, eq. 1, 2).

    Precision is the share of fake pictures whose features lie in a ball around those of a real picture, recall the
    share of real ones in a ball around a fake one; a ball reaches to its centre's k-th nearest neighbour in its own
    set. real (N, C, H, W) and fake (M, C, H, W) are floats in [-1, 1]; features: a name for `load_features`, or a
    function from pictures (B, C, H, W) to (B, D). The paper has the features of VGG-16 and 50,000 pictures on both
    sides; both values depend on the features, the counts and k, so compare only where these are equal.
    Raises ValueError for k pictures or fewer on one side, shapes that differ, and values outside [-1, 1].
    """
    check_whole("k", k)
    label, a, b = _both(real, fake, features, batch_size)
    values = covered(b, a, k), covered(a, b, k)
    return PrecisionRecall(*values, features=label, dim=a.shape[1], counts=(len(a), len(b)), k=k)


def covered(points, centres, k=3, block=512):
    """The share of `points` (N, D) within a ball around one of the `centres` (M, D), which reaches to the k-th nearest
    of the others; a float. Blocks of `block` rows, so that memory grows with N and M and not with their product.

    Raises ValueError unless there are more than k centres.
    """
    check_whole("k", k)
    if len(centres) <= k:
        raise ValueError(
            f"k={k} nearest neighbours need more than {k} pictures on each side, got {len(centres)}: take more"
            " pictures, or a smaller k"
        )
    middle = centres.double().mean(0)
    points, centres = points.double() - middle, centres.double() - middle  # near 0, where rounding is smallest
    slack = ROUNDING * max(points.square().sum(1).max().item(), centres.square().sum(1).max().item())
    radii = torch.cat([_squared(part, centres).kthvalue(k + 1, dim=1).values for part in centres.split(block)])
    inside = [(_squared(part, centres) <= radii + slack).any(1) for part in points.split(block)]
    return torch.cat(inside).double().mean().item()


def _squared(a, b):
    """Squared distances (N, M) of a (N, D) and b (M, D) by one product of matrices."""
    return torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2)
