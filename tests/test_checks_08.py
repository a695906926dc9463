"""The exercises of notebook 08: solutions pass, stubs fail, typical wrong answers are named."""

import math

import torch
import torch.nn.functional as F

from minidiff import create_model
from minidiff.course.checks import notebook_08 as checks
from minidiff.course.exercises import prove
from minidiff.layers import timestep_embedding

GIVEN = {"torch": torch, "math": math, "F": F}  # by the notebook to its solutions


def stub(*args):
    ...


def test_adm_features(solved):
    def by(order, divisor):
        return lambda time, dim: timestep_embedding(time, dim, order=order, divisor=divisor)

    def angles(sign, part):
        def features(time, dim):
            frequencies = torch.exp(sign * math.log(10_000) * torch.arange(dim // 2) / (part * dim))
            turned = time[:, None] * frequencies
            return torch.cat([turned.cos(), turned.sin()], dim=1)
        return features

    prove(checks.check_adm_features, solved["adm_features"], stub, {
        "DDPM's features": by("sin_cos", "half-1"),
        "sines come first": by("sin_cos", "half"),
        "divisor is m - 1": by("cos_sin", "half-1"),
        "divisor is the whole width": angles(-1, 1),
        "minus is missing": angles(1, 0.5),
        "k begins at 0": lambda time, dim: angles(-1, 0.5)(time * 10_000 ** (-2 / dim), dim),
    })  # fmt: skip


def test_downsample_same(solved):
    def wrong(pad, **options):
        return lambda x, weight, bias: F.conv2d(F.pad(x, pad), weight, bias, **{"stride": 2, **options})

    def swapped(x, weight, bias):
        return F.conv2d(F.pad(x, (x.shape[2] % 2, 1, x.shape[3] % 2, 1)), weight, bias, stride=2)

    prove(checks.check_downsample_same, solved["downsample_same"], stub, {
        "begins on a zero": wrong((1, 1, 1, 1)),
        "it goes after": wrong((1, 0, 1, 0)),
        "right for even sizes only": wrong((0, 1, 0, 1)),
        "there is no padding": wrong((0, 0, 0, 0)),
        "stride of 2 is missing": wrong((0, 1, 0, 1), stride=1),
        "for 8 x 5 pixels, rows and columns": swapped,
    })  # fmt: skip


def test_up_widths(solved):
    def wrong(**options):
        return lambda ch, ch_mult, blocks: checks.way_up(ch, ch_mult, blocks, **options)

    def too_short(ch, ch_mult, blocks):
        return [(ch, ch)] * (len(ch_mult) * blocks)

    prove(checks.check_up_widths, solved["up_widths"], stub, {
        "first in, last out": wrong(oldest_first=True),
        "block BEFORE": wrong(stale=True),
        "last skip of a level": wrong(own=True),
        "you begin at the finest": wrong(reverse=False),
        "wrong way round": lambda *a: [(skip, h) for h, skip in checks.way_up(*a)],
        "you have num_res_blocks": too_short,
        "too few skips": lambda *a: [].pop(),
        "must be a list of pairs": lambda *a: [h + skip for h, skip in checks.way_up(*a)],
    })  # fmt: skip


def test_the_expected_widths_are_those_of_real_networks():
    for name, arguments in {"ddpm_tiny": (24, (1, 2, 2), 1), "ddpm_cifar10": (128, (1, 2, 2, 2), 2)}.items():
        with torch.device("meta"):
            network = create_model(name)
        widths = [block.conv1.in_channels for stage in network.up for block in stage["blocks"]]
        assert [h + skip for h, skip in checks.way_up(*arguments)] == widths
