"""RePaint: the levels it visits, and what it paints beside a known half of a Gaussian."""

import pytest
import torch
from toy import load_math

from minidiff import schedules, seeded_noise, spacing
from minidiff.editing import repaint, repaint_indices
from minidiff.oracles import Gaussian
from minidiff.samplers import counted


def test_levels_equal_the_official_ones():
    golden = load_math("repaint")
    for steps, length, passes in ((250, 10, 10), (20, 5, 3), (12, 1, 4)):
        assert repaint_indices(steps, length, passes) == golden[f"jump_{steps}_{length}_{passes}"].tolist()
    indices = repaint_indices(250)
    assert sum(b < a for a, b in zip(indices, indices[1:])) == golden["nfe_250_10_10"]


def painted(passes, num=2000):
    """Mean of the second coordinate, given 1 for the first, of which it is 0.9 times plus noise."""
    schedule = schedules.linear()
    oracle = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    denoise, noise = counted(oracle.denoiser(schedule)), seeded_noise(range(num))
    known, mask = torch.ones(num, 2), torch.tensor([1.0, 0.0])
    times = spacing(schedule, 20)
    options = dict(known=known, mask=mask, jump_length=2, passes=passes)
    *_, last = repaint(denoise, schedule, noise(known), times, noise, **options)
    assert (last.x[:, 0] == 1).all() and last.t == 0
    return last.x[:, 1], denoise.evaluations


def test_passes_bring_what_is_painted_into_line_with_what_is_known():
    once, evaluations = painted(1)
    often, more = painted(8)
    assert evaluations == 20 and more > 100
    assert abs(often.mean() - 0.9) < abs(once.mean() - 0.9) / 2  # 0.78 and 0.56: nearer, not exact
    assert abs(often.std() - 0.19**0.5) < abs(once.std() - 0.19**0.5)


def test_wrong_shapes_and_numbers_are_named():
    with pytest.raises(ValueError, match=r"known must have the shape of x_T, \(2, 2\).*got \(3, 2\) and \(2,\)"):
        list(repaint(None, None, torch.zeros(2, 2), [1.0, 0.0], None, known=torch.zeros(3, 2), mask=torch.ones(2)))
    with pytest.raises(ValueError, match="passes must be a whole number of at least 1, got 0"):
        repaint_indices(10, passes=0)
