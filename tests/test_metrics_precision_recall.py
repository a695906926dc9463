"""Precision and recall: closed cases, the definition computed slowly, and what does not matter to them."""

import pytest
import torch

from minidiff import load_dataset
from minidiff.metrics import covered, precision_recall


def flat(x):
    """Features that are the pictures themselves."""
    return x.flatten(1)


def points(n, seed=0, dim=5, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def slowly(points, centres, k):
    """Eq. 1 and 2 of the paper, one pair at a time."""
    radii = []
    for i, centre in enumerate(centres):
        others = sorted((centre - other).norm().item() for j, other in enumerate(centres) if j != i)
        radii.append(others[k - 1])
    inside = [any((p - c).norm().item() <= r * (1 + 1e-9) for c, r in zip(centres, radii)) for p in points]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("shift", [0.7, 1.5])
def test_it_is_the_definition(k, shift):
    a, b = points(60), points(45, seed=1, shift=shift)
    for one, other in ((a, b), (b, a)):
        assert covered(one, other, k) == slowly(one, other, k)
    assert 0 < covered(a, b, k) < 1  # a case that tells something


def test_blocks_order_place_and_turns_do_not_matter():
    a, b = points(60), points(45, seed=1)
    turn = torch.linalg.qr(points(5))[0]
    value = covered(a, b)
    assert covered(a, b, block=7) == value
    assert covered(a.flip(0), b.flip(0)) == value
    assert covered(a @ turn * 3 + 1e6, b @ turn * 3 + 1e6) == value  # far from 0, where squares lose digits


def test_identical_sets_and_disjoint_sets():
    a = points(50)
    assert covered(a, a, k=1) == covered(a + 1e4, a + 1e4, k=1) == 1.0
    twice = a.repeat(3, 1)  # balls of radius 0 hold their own copies
    assert covered(twice, twice, k=1) == covered(a, twice, k=2) == 1.0
    wide = points(50, dim=700)
    assert all(covered(one[None], wide.repeat(3, 1), k=2) == 1.0 for one in wide)  # rounded in other ways than in rows
    assert covered(a, a + 100) == covered(a + 100, a) == 0.0
    images = a.view(50, 5, 1, 1).clamp(-1, 1)
    same = precision_recall(images, images.clone(), flat)
    assert (same.precision, same.recall) == (1.0, 1.0)


def test_half_of_the_modes():
    """Samples of one mode of two, and the reverse: what is missing is seen in recall, what is wrong in precision."""
    mode = 0.01 * points(80).clamp(-3, 3).view(80, 5, 1, 1)
    both = torch.cat([mode - 0.5, mode + 0.5])
    half = precision_recall(both, mode - 0.5, flat)
    assert (half.precision, half.recall) == (1.0, 0.5)
    extra = precision_recall(mode - 0.5, both, flat)
    assert (extra.precision, extra.recall) == (0.5, 1.0)
    other = precision_recall(both, 0.01 * points(80, seed=1).clamp(-3, 3).view(80, 5, 1, 1) - 0.5, flat)
    assert other.precision > 0.7 and 0.35 < other.recall < 0.5  # new draws of that mode


def test_equal_distributions_of_pictures_are_covered_and_damage_is_seen():
    data = load_dataset("shapes", size=16, scenes="one").batch(range(240))[0]
    real, fake = data[:120], data[120:]

    def small(x):
        return torch.nn.functional.avg_pool2d(x, 4).flatten(1)

    alike = precision_recall(real, fake, small)
    assert alike.precision > 0.7 and alike.recall > 0.7
    noisy = precision_recall(real, (-fake).clamp(-1, 1), small)
    assert noisy.precision < 0.1 and noisy.recall < 0.1
    noise = 0.01 * torch.randn(fake.shape, generator=torch.Generator().manual_seed(0))
    narrow = precision_recall(real, (fake[:1] + noise).clamp(-1, 1), small)
    assert narrow.recall < 0.1  # one picture, over and over


def test_it_says_what_it_was_measured_with():
    real = points(20).view(20, 5, 1, 1).clamp(-1, 1)
    text = str(precision_recall(real, real[:10], flat, k=2))
    assert "precision 1.000, recall 1.000" in text
    assert "(flat features, 5 numbers, k = 2; 20 real against 10 fake" in text
    assert "few: compare at equal counts only, or take 1000" in text
    precision, recall, *_ = precision_recall(real, real, flat)
    assert precision == recall == 1.0


def test_errors():
    real = points(20).view(20, 5, 1, 1).clamp(-1, 1)
    with pytest.raises(ValueError, match="k=10 nearest neighbours need more than 10 pictures on each side, got 10"):
        precision_recall(real, real[:10], flat, k=10)
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got 0"):
        precision_recall(real, real, flat, k=0)
    with pytest.raises(ValueError, match="same shape"):
        precision_recall(real, real[:, :3], flat)
    with pytest.raises(ValueError, match=r"fake must have values in \[-1, 1\]"):
        precision_recall(real, 3 * real, flat)
    with pytest.raises(ValueError, match="unknown features 'emojis'"):
        precision_recall(real, real, "emojis")
