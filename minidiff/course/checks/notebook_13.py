"""Checks of notebook 13: weights without effect, maps of windows put in place, a position bias that knows the time."""

import functools

import torch

from minidiff.backbones.swin import relative_index
from minidiff.course.exercises import compare, exercise, unpack


@exercise("a third of the time's weights speak into a softmax that cannot hear them.")
def check_time_weights(time_weights):
    for depth, dim in ((1, 4), (5, 96), (28, 1152)):
        every, dead = unpack(time_weights(depth, dim), "all of them", "those without effect")
        one = dim * (dim + 1)
        mistakes = {
            "the constants are missing: a map of `dim` numbers to one has `dim` weights and a constant":
                3 * depth * dim * dim,
            "a map has a constant for each number that it makes, not one alone": 3 * depth * (dim * dim + 1),
            "this is one block; there are `depth`": 3 * one,
            "each block has three maps, for queries, keys and values": depth * one,
            "you count the maps of the tokens, too; only those of c are asked for": 6 * depth * one,
        }
        compare(every, 3 * depth * one, mistakes, name="the number of all parameters", rtol=0, atol=0.5)
        mistakes = {
            "the constants of U_k have no effect either: they are the same for every key": depth * dim * dim,
            "only the keys' part has no effect, and its constants belong to it": 2 * depth * dim * dim,
            "the constants of W_k are as silent, but they are no part of the maps of c": depth * dim * (dim + 2),
            "only the keys' part has no effect; U_v adds a vector to every token": 2 * depth * one,
            "some have no effect: token-time and time-time are constant along a row, and what makes them is U_k": 0,
            "only U_k has no effect; queries and values do": 3 * depth * one,
            "this is one block; there are `depth`": one,
        }
        compare(dead, depth * one, mistakes, name="the number of those without effect", rtol=0, atol=0.5)


def place(patch, at, side, window):
    """The patch (3, window^2) in zeros (3, side, side), at the window (row, column)."""
    out, top, left = torch.zeros(3, side, side), at[0] * window, at[1] * window
    out[:, top : top + window, left : left + window] = patch.reshape(3, window, window)
    return out


@exercise("a pixel looks at its window and nowhere else.")
def check_look_from(look_from):
    for side, window, row, column in ((8, 4, 5, 2), (12, 4, 2, 9), (16, 4, 13, 7), (6, 2, 3, 4), (8, 8, 1, 6)):
        count = side // window
        maps = torch.randn(count * count, 3, window**2, window**2).softmax(-1)
        (i, y), (j, x) = divmod(row, window), divmod(column, window)

        put = functools.partial(place, side=side, window=window)
        here, asking = i * count + j, y * window + x
        right = maps[here, :, asking]
        mistakes = {
            "the window is the right one, and drawn in the wrong place": put(right, (0, 0)),
            "rows and columns of the place are swapped": put(right, (j, i)),
            "the windows are numbered row by row: (row of windows) * (windows in a row) + column":
                put(maps[j * count + i, :, asking], (i, j)),
            "you multiply the row of windows by the window's side; it takes the number of windows in a row":
                put(maps[min(i * window + j, count * count - 1), :, asking], (i, j)),
            "you take how the pixel is looked at, a column of the map; where it looks is a row":
                put(maps[here, :, :, asking], (i, j)),
            "the tokens of a window are numbered row by row: (row in the window) * window + column in it":
                put(maps[here, :, x * window + y], (i, j)),
            "a window begins at (row of windows) * window, and so for the columns":
                put(right, (i, j)).roll((i - i * window, j - j * window), dims=(1, 2)),
            "you average over the pixels that ask; only one does, a row of the map": put(maps[here].mean(1), (i, j)),
            "every window has a pixel at this place, and you draw all windows; only the one with the pixel counts":
                maps[:, :, asking].view(count, count, 3, window, window).permute(2, 0, 3, 1, 4).reshape(3, side, side),
            "rows and columns inside the window are swapped":
                put(right.unflatten(1, (window, window)).transpose(1, 2), (i, j)),
            "the heads belong apart, (heads, side, side); you average over them": put(right, (i, j)).mean(0),
            "this is the window alone; put it into zeros of side x side": right.unflatten(1, (window, window)),
        }
        compare(look_from(maps, row, column, side, window), put(right, (i, j)), mistakes, name="the picture")


@exercise("with a table for each time, who looks at whom can change, which no query shift can do.")
def check_timed_bias(timed_bias):
    for batch, g, heads in ((2, 3, 4), (3, 2, 3), (1, 4, 2)):
        tables = torch.randn(batch, (2 * g - 1) ** 2, heads)
        index = relative_index((g, g))
        right = torch.stack([table[index].permute(2, 0, 1) for table in tables])
        rows, columns = torch.arange(g * g) // g, torch.arange(g * g) % g
        down, across = rows[:, None] - rows, columns[:, None] - columns
        swapped = tables.unflatten(1, (2 * g - 1, 2 * g - 1)).transpose(1, 2).flatten(1, 2)
        mistakes = {
            "i - j is the offset, and you take j - i: the rows of the table are in the opposite order":
                right.transpose(2, 3),
            "rows apart come first in the table: (rows + g - 1) * (2g - 1) + columns + g - 1":
                swapped[:, index].permute(0, 3, 1, 2),
            "the heads stand last; return (B, heads, N, N)": right.permute(0, 2, 3, 1),
            "every picture has its own table; you use the first one for all": right[:1].expand_as(right),
            "every picture has its own table; you average them": right.mean(0, keepdim=True).expand_as(right),
            "a row of the table has 2g - 1 entries, not g: (rows + g - 1) * (2g - 1) + columns + g - 1":
                tables[:, (down + g - 1) * g + across + g - 1].permute(0, 3, 1, 2),
            "above and below are different offsets; you take how far without the sign":
                tables[:, (down.abs() + g - 1) * (2 * g - 1) + across.abs() + g - 1].permute(0, 3, 1, 2),
            "offsets are negative, too: add g - 1 to both before you look them up": tables[
                :, (index - (g - 1) * (2 * g - 1) - (g - 1))].permute(0, 3, 1, 2),
        }
        compare(timed_bias(tables, g), right, mistakes, name="the bias")
