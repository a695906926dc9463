"""RePaint (Lugmayr et al. 2022): paint the unknown part of a picture with any model, by going back and forth in time.

Each step takes the known part from the given picture, with the noise of the present level, and the rest from the
model. The two do not fit at first. So every few steps the state is noised again and denoised once more: each pass lets
the model bring the rest into line with what is known.
"""

import math

import torch

from minidiff.errors import check_whole
from minidiff.samplers.ancestral import Step, ddpm
from minidiff.variational import step_variances


def repaint_indices(steps, jump_length=10, passes=10):
    """The levels that RePaint visits, from steps - 1 (noise) to -1 (picture), one up or down at a time (their app. B).

    At every multiple of jump_length, but for the last stretch below the noise, it climbs jump_length levels up again,
    passes - 1 times: 250, 10 and 10 in the paper. A pair (a, a - 1) is a step of the model, (a, a + 1) a noising one.
    """
    for name, value in (("steps", steps), ("jump_length", jump_length), ("passes", passes)):
        check_whole(name, value)
    left = {level: passes - 1 for level in range(0, steps - jump_length, jump_length)}
    level, indices = steps - 1, [steps - 1]
    while level >= 0:
        if left.get(level, 0) > 0:
            left[level] -= 1
            indices += range(level + 1, level + jump_length + 1)
            level += jump_length
        level -= 1
        indices.append(level)
    return indices


@torch.no_grad()
def repaint(denoise, schedule, x_T, times, noise, *, known, mask, jump_length=10, passes=10, variance="small"):
    """DDPM with the known part of a picture put in before each evaluation but the first, and with jumps back up.

    known: the picture (B, C, H, W); mask: 1 where it is known, 0 where it is to be painted, broadcasts against it.
    times: as for ddpm, evenly spaced ones mostly. Yields a Step after each step down and each way up; the x of the
    last one has the known part exactly. Draws noise for each known part, each step and each way up.
    """
    if torch.broadcast_shapes(mask.shape, known.shape) != known.shape or known.shape != x_T.shape:
        raise ValueError(
            f"known must have the shape of x_T, {tuple(x_T.shape)}, and the mask broadcast against it; got"
            f" {tuple(known.shape)} and {tuple(mask.shape)}"
        )
    time_of = {level: t for level, t in zip(range(len(times) - 2, -2, -1), times)}
    indices, x = repaint_indices(len(times) - 1, jump_length, passes), x_T
    for place, (level, following) in enumerate(zip(indices, indices[1:])):
        t, s = time_of[level], time_of[following]
        if following > level:
            shrink = schedule(s)[0] / schedule(t)[0]
            x = shrink * x + math.sqrt(step_variances(schedule, t, s)[1]) * noise(x)
            yield Step(x, s, x)
            continue
        if place:
            alpha, sigma = schedule(t)
            x = mask * (alpha * known + sigma * noise(x)) + (1 - mask) * x
        (step,) = ddpm(denoise, schedule, x, [t, s], noise, variance=variance)
        x = step.x if following >= 0 else mask * known + (1 - mask) * step.x
        yield Step(x, s, step.x0)
