"""The exercises of notebook 10: solutions pass, stubs fail, typical wrong answers are named."""


import torch
import torch.nn.functional as F

from minidiff import create_model
from minidiff.course.checks import notebook_10 as checks
from minidiff.course.exercises import prove
from minidiff.layers import patchify

GIVEN = {"torch": torch, "F": F}  # by the notebook to its solutions


def stub(*args):
    ...


def test_linear_from_conv(solved):
    def reshaped(weight):
        dim, channels, p, _ = weight.shape
        return weight.reshape(dim, p, p, channels).transpose(1, 2).flatten(1)

    prove(checks.check_linear_from_conv, solved["linear_from_conv"], stub, {
        "channels come first": lambda weight: weight.flatten(1),
        "rows and columns of the patch": lambda weight: weight.permute(0, 3, 2, 1).flatten(1),
        "(row, channel, column)": lambda weight: weight.transpose(1, 2).flatten(1),
        "this is transposed": lambda weight: weight.permute(0, 2, 3, 1).flatten(1).T,
        "does not move the channels": reshaped,
    })  # fmt: skip
    x, conv = torch.randn(2, 3, 8, 8), torch.nn.Conv2d(3, 5, 2, stride=2)
    mine = F.linear(patchify(x, 2), solved["linear_from_conv"](conv.weight), conv.bias)
    assert torch.allclose(mine, conv(x).flatten(2).transpose(1, 2), atol=1e-5)


def test_skip_weight(solved):
    def pieces(join):
        return lambda dim, a, b: join(torch.eye(dim), a, b)

    prove(checks.check_skip_weight, solved["skip_weight"], stub, {
        "halves are swapped": pieces(lambda eye, a, b: torch.cat([b * eye, a * eye], 1)),
        "this is transposed": pieces(lambda eye, a, b: torch.cat([a * eye, b * eye], 0)),
        "ones everywhere": lambda dim, a, b: torch.ones(dim, 2 * dim),
        "nothing of lower": pieces(lambda eye, a, b: torch.cat([a * eye, torch.zeros_like(eye)], 1)),
        "the same factor": pieces(lambda eye, a, b: torch.cat([a * eye, a * eye], 1)),
        "side by side": pieces(lambda eye, a, b: torch.stack([a * eye, b * eye], 2).flatten(1)),
    })  # fmt: skip


def test_concatenation_holds_addition_and_none(solved):
    torch.manual_seed(0)
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([300.0])
    concat = create_model("uvit_test")
    for skip, b in (("add", 1.0), ("none", 0.0)):
        for block in concat.out_blocks:
            block.skip_linear.weight.data = solved["skip_weight"](24, 1.0, b)
        other = create_model("uvit_test", skip=skip)
        other.load_state_dict({k: v for k, v in concat.state_dict().items() if "skip_linear" not in k})
        assert torch.allclose(concat(x, time), other(x, time), atol=1e-5)


def test_grow_positions(solved):
    def line(pos_embed, extras, size):
        return F.interpolate(pos_embed.mT, size=extras + size**2, mode="linear").mT

    def patches_as_line(pos_embed, extras, size):
        grid = F.interpolate(pos_embed[:, extras:].mT, size=size**2, mode="linear").mT
        return torch.cat([pos_embed[:, :extras], grid], dim=1)

    def reshaped(pos_embed, extras, size, back=False):
        side = round((pos_embed.shape[1] - extras) ** 0.5)
        grid = pos_embed[:, extras:].reshape(1, pos_embed.shape[2], side, side)
        grid = F.interpolate(grid, size=(size, size), mode="bilinear")
        grid = grid.reshape(1, size**2, -1) if back else grid.flatten(2).transpose(1, 2)
        return torch.cat([pos_embed[:, :extras], grid], dim=1)

    def at_the_end(pos_embed, extras, size):
        right = checks.grown(pos_embed, extras, size)
        return torch.cat([right[:, extras:], right[:, :extras]], dim=1)

    prove(checks.check_grow_positions, solved["grow_positions"], stub, {
        "stretched as one line; positions have two": line,
        "put them back into their grid": patches_as_line,
        "nearest position is repeated": lambda *a: checks.grown(*a, mode="nearest"),
        "corner on corner": lambda *a: checks.grown(*a, align_corners=True),
        "rows and columns are swapped": lambda *a: checks.grown(*a, swap=True),
        "this is bicubic": lambda *a: checks.grown(*a, mode="bicubic"),
        "exchange tokens and channels first": reshaped,
        "exchange the axes back": lambda *a: checks.grown(*a, torn=("out",)),
        "before and after the resizing": lambda *a: reshaped(*a, back=True),
        "went to the end": at_the_end,
        "before the patches are gone": lambda pos, extras, size: checks.grown(pos, extras, size)[:, extras:],
    })  # fmt: skip
