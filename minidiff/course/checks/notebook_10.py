"""Checks of notebook 10: patches by convolution, the map of a skip, and positions for a larger picture."""

import torch
import torch.nn.functional as F

from minidiff.course.exercises import Wrong, compare, exercise


@exercise("a convolution whose stride is its size is a linear map of patches; only the order of the pixels differs.")
def check_linear_from_conv(linear_from_conv):
    for dim, channels, p in ((5, 3, 2), (7, 4, 4)):
        weight = torch.randn(dim, channels, p, p)
        right = weight.permute(0, 2, 3, 1).flatten(1)
        mistakes = {
            "the channels come first in each patch, as in the convolution's weight; `patchify` has them last":
                weight.flatten(1),
            "rows and columns of the patch are swapped": weight.permute(0, 3, 2, 1).flatten(1),
            "the order is (row, channel, column); `patchify` has (row, column, channel)":
                weight.transpose(1, 2).flatten(1),
            "this is transposed: a Linear keeps its weight as (outputs, inputs)": right.T,
            "a view with another shape does not move the channels; permute them to the end first":
                weight.reshape(dim, p, p, channels).transpose(1, 2).flatten(1),
        }  # fmt: skip
        compare(linear_from_conv(weight), right, mistakes, name="the weight")


@exercise("addition and no skip are two settings of the concatenation, which can also learn anything in between.")
def check_skip_weight(skip_weight):
    for dim, a, b in ((4, 1.0, 1.0), (6, 1.0, 0.0), (5, 0.5, 2.0)):
        eye = torch.eye(dim)
        right = torch.cat([a * eye, b * eye], dim=1)
        where = f"for skip_weight({dim}, {a}, {b}), "
        mistakes = {
            where + "the halves are swapped: the concatenation is [x, lower], so a comes first":
                torch.cat([b * eye, a * eye], dim=1),
            where + "this is transposed: a Linear keeps its weight as (outputs, inputs), here (dim, 2 dim)": right.T,
            where + "there are ones everywhere, which sums up all channels; each output channel takes one":
                torch.cat([torch.full((dim, dim), a), torch.full((dim, dim), b)], dim=1),
            where + "there is nothing of lower; b times the identity belongs into the second half":
                torch.cat([a * eye, 0 * eye], dim=1),
            where + "both halves have the same factor":
                torch.cat([a * eye, a * eye], dim=1),
            where + "the pairs of channels stand side by side; all of x comes first, then all of lower":
                torch.stack([a * eye, b * eye], dim=2).flatten(1),
        }  # fmt: skip
        compare(skip_weight(dim, a, b), right, mistakes, name=where + "the weight")


def grown(pos_embed, extras, size, mode="bilinear", swap=False, torn=(), **options):
    """The positions (1, extras + size^2, dim) for a grid of another size; the options are mistakes."""
    first, grid = pos_embed[:, :extras], pos_embed[:, extras:]
    side = round(grid.shape[1] ** 0.5)
    if "in" in torn:  # a reshape where axes should be exchanged
        grid = grid.reshape(1, -1, side, side)
    else:
        grid = grid.transpose(1, 2).unflatten(2, (side, side))  # (1, dim, side, side)
    grid = F.interpolate(grid.mT if swap else grid, size=(size, size), mode=mode, **options)
    if "out" in torn:
        return torch.cat([first, grid.reshape(1, size**2, -1)], dim=1)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)


@exercise("a table learned on one grid reads as a map, and a map can be enlarged; tokens without a place stay.")
def check_grow_positions(grow_positions):
    for side, extras, size, dim in ((3, 1, 6, 5), (4, 2, 6, 3)):
        pos_embed = torch.randn(1, extras + side**2, dim)
        answer = grow_positions(pos_embed, extras, size)
        shape = (1, extras + size**2, dim)
        if isinstance(answer, torch.Tensor) and answer.shape == (1, size**2, dim):
            got = tuple(answer.shape)
            raise Wrong(f"The {extras} tokens before the patches are gone: expected {shape}, got {got}.")
        right = grown(pos_embed, extras, size)
        line = F.interpolate(pos_embed.transpose(1, 2), size=shape[1], mode="linear").transpose(1, 2)
        patches = F.interpolate(pos_embed[:, extras:].transpose(1, 2), size=size**2, mode="linear").transpose(1, 2)
        mistakes = {
            "the whole sequence is stretched as one line; positions have two directions, and the first tokens none":
                line,
            "the patches are stretched as one line; put them back into their grid first":
                torch.cat([pos_embed[:, :extras], patches], dim=1),
            "the nearest position is repeated; take mode='bilinear'": grown(pos_embed, extras, size, mode="nearest"),
            "align_corners=True puts corner on corner; with patches, the default (False) is right":
                grown(pos_embed, extras, size, align_corners=True),
            "this is bicubic; take mode='bilinear'": grown(pos_embed, extras, size, mode="bicubic"),
            "rows and columns are swapped": grown(pos_embed, extras, size, swap=True),
            "a reshape to (1, dim, side, side) tears the vectors apart; exchange tokens and channels first":
                grown(pos_embed, extras, size, torn=("in",)),
            "a reshape to (1, size * size, dim) tears the vectors apart; exchange the axes back":
                grown(pos_embed, extras, size, torn=("out",)),
            "reshapes tear the vectors apart, before and after the resizing; exchange tokens and channels instead":
                grown(pos_embed, extras, size, torn=("in", "out")),
            "the tokens without a place went to the end; they come first":
                torch.cat([right[:, extras:], right[:, :extras]], dim=1),
        }  # fmt: skip
        compare(answer, right, mistakes, name="the table of positions")
