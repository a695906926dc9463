"""Checks of notebook 19: thresholding in any range, whose mistake, a network of another size, how many GPUs."""

import torch

from minidiff.course.exercises import compare, exercise, unpack
from minidiff.guidance import dynamic_threshold
from minidiff.prediction import Prediction


def quantile(values, p=0.995):
    """Of the absolute values of each picture, (B, 1, 1, 1)."""
    return torch.quantile(values.abs().flatten(1), p, dim=1).view(-1, 1, 1, 1)


@exercise("the quantile is a distance from the middle of the range, whatever the range.")
def check_threshold_in(threshold_in):
    for low, high in ((-1.0, 1.0), (0.0, 1.0), (-2.0, 6.0)):
        middle, half = (low + high) / 2, (high - low) / 2
        x0 = middle + half * torch.randn(4, 3, 8, 8) * torch.tensor([0.2, 0.6, 1.5, 3.0]).view(-1, 1, 1, 1)
        x = (x0 - middle) / half

        def shrunk(x, s, middle=middle, half=half):
            return middle + half * x.clamp(-s, s) / s

        s = quantile(x)
        whole = torch.quantile(x.abs(), 0.995).clamp(min=1)
        mistakes = {
            "s may not be below 1: a picture that fits into the range would be stretched to fill it": shrunk(x, s),
            "each picture has a quantile of its own; yours is that of the whole batch": shrunk(x, whole),
            "p was left out: that is the largest value, one pixel decides": shrunk(x, quantile(x, 1.0).clamp(min=1)),
            "you clip to s and forget to divide by it": middle + half * x.clamp(-s.clamp(min=1), s.clamp(min=1)),
            "that is the static threshold: clip to s, then divide by s": x0.clamp(low, high),
            "the values are measured from 0; measure them from the middle of the range, in halves of its width":
                x0.clamp(-quantile(x0).clamp(min=1), quantile(x0).clamp(min=1)) / quantile(x0).clamp(min=1),
            "you have changed to the range [-1, 1] and not back": shrunk(x, s.clamp(min=1)).sub(middle).div(half),
        }
        if (low, high) == (-1.0, 1.0):
            mistakes = dict(list(mistakes.items())[:5])
        right = dynamic_threshold(lambda x_t, t: Prediction("x0", x_t, x_t, 0.6, 0.8), low=low, high=high)(x0, 0.5).x0
        assert torch.allclose(right, shrunk(x, s.clamp(min=1)), atol=1e-5)
        compare(threshold_in(x0, low, high), right, mistakes, name=f"x0 in [{low:g}, {high:g}]", atol=1e-5)
        few = threshold_in(x0, low, high, p=0.9)
        compare(few, shrunk(x, quantile(x, 0.9).clamp(min=1)), {"p is not used": right},
                name=f"x0 in [{low:g}, {high:g}] at p = 0.9", atol=1e-5)  # fmt: skip


@exercise("the three and what is right from end to end add up to one; 'broken' is what the second stage answers for.")
def check_blame(blame):
    for counts in ((9, 7, 5, 19), (1, 2, 1, 3)):  # inherited, broken, more of them than repaired, and right
        kinds = torch.arange(4).repeat_interleave(torch.tensor(counts))[torch.randperm(sum(counts))]
        small, large = kinds % 2 == 1, kinds >= 2
        right = [(~small & ~large), (small & ~large), (~small & large)]
        shares = [part.float().mean().item() for part in right]
        names = ("inherited", "broken", "repaired")
        given = unpack(blame(small, large), *names)
        of_small = [shares[0] / (~small).float().mean().item(), shares[1] / small.float().mean().item(),
                    shares[2] / (~small).float().mean().item()]  # fmt: skip
        for place, name in enumerate(names):
            mistakes = {
                f"{name} and another are exchanged: broken was right when small, repaired is right when large":
                    shares[(0, 2, 1)[place]],
                "that is a number of pictures; a share is a mean": right[place].sum().item(),
                "the share is of all pictures, not of those whose small picture was right or wrong": of_small[place],
                "that counts every wrong large picture; inherited are those whose small one was wrong, too":
                    (~large).float().mean().item(),
                "that counts every wrong small picture; some of them were repaired": (~small).float().mean().item(),
            }  # fmt: skip
            compare(float(given[place]), shares[place], mistakes, name=name)


@exercise("twice as wide costs four times the work and twice the memory for maps; twice the side four times of both.")
def check_rescaled(rescaled):
    for width, side in ((2, 1), (1, 2), (3, 4), (0.5, 2)):
        w, a, f = 5e8, 3e9, 9e11
        given = unpack(rescaled(w, a, f, width, side), "weights", "activations", "flops")
        right = w * width**2, a * width * side**2, f * width**2 * side**2
        mistakes = (
            {"each weight joins a channel that comes in with one that goes out: both grow with the width": w * width,
             "a convolution has the same weights at any side": w * width**2 * side**2},
            {"a map has channels x rows x columns: the side counts twice": a * width * side,
             "a map has channels x rows x columns: the width counts once": a * width**2 * side**2,
             "the maps get wider, too": a * side**2},
            {"the work is done in every row and every column: the side counts twice": f * width**2 * side,
             "every weight is used at every place, and the weights grow with the square of the width":
                 f * width * side**2,
             "at every place there is the same work; there are side^2 times as many places": f * width**2},
        )  # fmt: skip
        for name, mine, value, wrong in zip(("weights", "activations", "flops"), given, right, mistakes):
            compare(mine, value, wrong, name=f"{name} for width {width:g} and side {side:g}")


@exercise("a cluster is rented by its arithmetic; the utilisation is the one number that you have to measure.")
def check_gpus_for(gpus_for):
    def divisor(needed, batch):
        return next((n for n in range(1, batch + 1) if batch % n == 0 and n >= needed), 0)

    for days, steps, batch, forward, peak, used, again in (
        (4, 500_000, 2520, 9e11, 989e12, 0.2, False), (4, 500_000, 2520, 9e11, 989e12, 0.2, True),
        (2, 300_000, 96, 1e12, 312e12, 0.25, False), (1, 10**7, 64, 9e12, 312e12, 0.2, False),
    ):  # fmt: skip
        one = steps * batch * forward / (days * 86_400 * peak)
        passes = 4 if again else 3
        needed = passes * one / used
        right = divisor(needed, batch)
        mistakes = {
            "a step is three forward passes: the backward pass costs two": divisor(one / used, batch),
            "with checkpointing everything is computed forward twice: four passes in all":
                divisor(3 * one / used, batch),
            "without checkpointing a step costs three passes": divisor(4 * one / used, batch),
            "no GPU reaches its peak: divide by the utilisation": divisor(passes * one, batch),
            "the utilisation slows the GPUs down, so more of them are needed: divide by it": divisor(
                passes * one * used, batch),
            "the batch does not divide evenly: the next larger divisor of it": -int(-needed // 1),
            "even one GPU for each picture is too slow here: 0": batch,
        }  # fmt: skip
        compare(gpus_for(days, steps, batch, forward, peak, used, again), right, mistakes, rtol=0, atol=0.5,
                name=f"the GPUs for {days} days, batch {batch}" + ", with checkpointing" * again)  # fmt: skip
