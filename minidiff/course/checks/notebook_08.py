"""Checks of notebook 08: another house's time features, padding for any size, and the stack of skips."""

import torch
import torch.nn.functional as F

from minidiff.course.exercises import Wrong, compare, exercise
from minidiff.layers import timestep_embedding


@exercise("two conventions of one idea, and a network trained with the one is lost with the other.")
def check_adm_features(adm_features):
    for dim, steps in ((8, [0.0, 0.5, 1.0, 2.0]), (32, [0.0, 1.0, 37.0, 500.0, 999.0])):  # short angles show a minus
        time, half = torch.tensor(steps), dim // 2
        rows = time[:, None]

        def features(order="cos_sin", divisor="half", scale=1.0, dim=dim, time=time):
            return timestep_embedding(scale * time, dim, order=order, divisor=divisor)

        right = features()
        frequencies = torch.exp(-torch.log(torch.tensor(10_000.0)) * torch.arange(half) / half)
        later = torch.exp(-torch.log(torch.tensor(10_000.0)) * torch.arange(1, half + 1) / half)
        mistakes = {
            "these are DDPM's features, with sines first and the divisor m - 1; change both":
                features("sin_cos", "half-1"),
            "the sines come first; ADM has the cosines first": features("sin_cos"),
            "the divisor is m - 1; ADM divides by m, half the width": features(divisor="half-1"),
            "the divisor is the whole width; it is m, half of it":
                torch.cat([(rows * frequencies.sqrt()).cos(), (rows * frequencies.sqrt()).sin()], 1),
            "the minus is missing in the exponent: the frequencies must fall from 1, not rise":
                torch.cat([(rows / frequencies).cos(), (rows / frequencies).sin()], 1),
            "k begins at 0, so that the first frequency is 1; yours begins at 1":
                torch.cat([(rows * later).cos(), (rows * later).sin()], 1),
            "cosines and sines alternate; all cosines come first, then all sines":
                torch.stack([right[:, :half], right[:, half:]], dim=2).flatten(1),
            "these are the angles; take their cosines and sines":
                torch.cat([rows * frequencies, rows * frequencies], 1),
        }  # fmt: skip
        compare(adm_features(time, dim), right, mistakes, name="the table of features", rtol=1e-3, atol=2e-4)


@exercise("even sizes need one zero, after; odd ones need two, one on each side.")
def check_downsample_same(downsample_same):
    weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
    for height, width in ((8, 8), (7, 7), (8, 5), (9, 6)):
        x = torch.randn(2, 3, height, width)

        def padded(left, right, top, bottom, stride=2, bias=bias, x=x):
            return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride=stride)

        def cropped(*sides, height=height, width=width, padded=padded):
            return padded(*sides)[:, :, : -(-height // 2), : -(-width // 2)]

        odd_h, odd_w = height % 2, width % 2
        right = padded(odd_w, 1, odd_h, 1)
        where = f"for {height} x {width} pixels, "
        mistakes = {
            where + "the kernel begins on a zero at the left or top, as with padding=1; an even size gets one zero, "
            "and it goes after": padded(1, 1, 1, 1),
            where + "this is right for even sizes only; an odd one needs a zero on each side": padded(0, 1, 0, 1),
            where + "rows and columns are mixed up: F.pad takes (left, right, top, bottom)":
                cropped(odd_h, 1, odd_w, 1),
            where + "there is no padding": padded(0, 0, 0, 0),
            where + "the stride of 2 is missing": padded(odd_w, 1, odd_h, 1, stride=1),
            where + "the bias is missing": padded(odd_w, 1, odd_h, 1, bias=None),
        }  # fmt: skip
        compare(downsample_same(x, weight, bias), right, mistakes, name=f"{where}the result")


def kept_widths(ch, widths, blocks, first=True, samplings=True):
    """The widths of what the way down keeps, in order."""
    kept = [ch] if first else []
    for level, width in enumerate(widths):
        kept += [width] * blocks + [width] * (samplings and level < len(widths) - 1)
    return kept


def way_up(ch, ch_mult, blocks, oldest_first=False, stale=False, reverse=True, own=False):
    """Pairs (width of h, width of the skip); the options are mistakes."""
    widths = [ch * mult for mult in ch_mult]
    kept = kept_widths(ch, widths, blocks)
    kept = kept if oldest_first else kept[::-1]
    pairs, h = [], widths[-1]
    for k, width in enumerate(widths[::-1] if reverse else widths):
        for j in range(blocks + 1):
            pairs.append((width if stale else h, width if own else kept[k * (blocks + 1) + j]))
            h = width
    return pairs


@exercise("a stack, first in, last out, and its sums are the widths of the first convolutions on the way up.")
def check_up_widths(up_widths):
    for ch, ch_mult, blocks in ((32, (1, 2, 2), 1), (128, (1, 2, 2, 2), 2), (64, (1, 2, 4), 1), (16, (1, 3, 5, 7), 3)):
        asked = f"up_widths({ch}, {ch_mult}, {blocks})"
        try:
            mine = up_widths(ch, ch_mult, blocks)
        except IndexError as error:
            raise Wrong(f"{asked} stops with {error}: there are too few skips for num_res_blocks + 1 blocks a level. "
                        "The results of conv_in and of the downsamplings are kept, too.") from error
        right = way_up(ch, ch_mult, blocks)
        if not isinstance(mine, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in mine):
            raise Wrong(f"{asked} must be a list of pairs (width of h, width of the skip); it begins {str(mine)[:60]}.")
        if len(mine) != len(right):
            hint = f"every level has num_res_blocks + 1 of them, so there are {len(right)}"
            if len(mine) == len(right) - len(ch_mult):
                hint += "; you have num_res_blocks. The results of conv_in and of the downsamplings are kept, too"
            raise Wrong(f"{asked} lists {len(mine)} blocks; {hint}.")
        pairs = torch.tensor(right)
        mistakes = {
            "the skips come out in the order in which they went in; it is a stack: first in, last out":
                way_up(ch, ch_mult, blocks, oldest_first=True),
            "each pair is the wrong way round: h first, then the skip": pairs.flip(1),
            "h has the width of the block BEFORE, not of this one; they differ where a new level begins":
                way_up(ch, ch_mult, blocks, stale=True),
            "the last skip of a level has not its width: it is what the downsampling before it, or conv_in, put out":
                way_up(ch, ch_mult, blocks, own=True),
            "the way up begins at the lowest level; you begin at the finest":
                way_up(ch, ch_mult, blocks, reverse=False),
            "this is the list backwards; the way up begins at the lowest level": pairs.flip(0),
        }  # fmt: skip
        compare(torch.tensor(mine), pairs, mistakes, name=f"the list of {asked}")
