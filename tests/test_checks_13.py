"""The exercises of notebook 13: solutions pass, stubs fail, typical wrong answers are named."""


import torch

from minidiff.course.checks import notebook_13 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch}  # by the notebook to its solutions


def stub(*args):
    ...


def test_time_weights(solved):
    prove(checks.check_time_weights, solved["time_weights"], stub, {
        "the constants are missing": lambda depth, dim: (3 * depth * dim**2, depth * dim**2),
        "not one alone": lambda depth, dim: (3 * depth * (dim**2 + 1), depth * (dim**2 + 1)),
        "its constants belong to it": lambda depth, dim: (3 * depth * dim * (dim + 1), 2 * depth * dim**2),
        "the constants of W_k": lambda depth, dim: (3 * depth * dim * (dim + 1), depth * dim * (dim + 2)),
        "three maps": lambda depth, dim: (depth * dim * (dim + 1), 0),
        "maps of the tokens": lambda depth, dim: (6 * depth * dim * (dim + 1), 0),
        "constants of U_k": lambda depth, dim: (3 * depth * dim * (dim + 1), depth * dim**2),
        "only the keys' part": lambda depth, dim: (3 * depth * dim * (dim + 1), 2 * depth * dim * (dim + 1)),
        "some have no effect": lambda depth, dim: (3 * depth * dim * (dim + 1), 0),
        "expected 2": lambda depth, dim: 3 * depth * dim * (dim + 1),
    })  # fmt: skip


def test_look_from(solved):
    right = solved["look_from"]

    def window_of(maps, row, column, side, window, number, asking):
        patch = maps[number, :, asking].unflatten(1, (window, window))
        out, top, left = torch.zeros(maps.shape[1], side, side), row // window * window, column // window * window
        out[:, top : top + window, left : left + window] = patch
        return out

    def by_columns(maps, row, column, side, window):
        number = column // window * (side // window) + row // window
        return window_of(maps, row, column, side, window, number, row % window * window + column % window)

    def token_by_columns(maps, row, column, side, window):
        number = row // window * (side // window) + column // window
        return window_of(maps, row, column, side, window, number, column % window * window + row % window)

    def in_the_corner(maps, row, column, side, window):
        picture = right(maps, row, column, side, window)
        return picture.roll((-(row // window) * window, -(column // window) * window), dims=(1, 2))

    def beside_its_window(maps, row, column, side, window):
        i, j = row // window, column // window
        return right(maps, row, column, side, window).roll((i - i * window, j - j * window), dims=(1, 2))

    def all_windows(maps, row, column, side, window):
        places = [(row % window + top, column % window + left)
                  for top in range(0, side, window) for left in range(0, side, window)]
        return sum(right(maps, *place, side, window) for place in places)

    prove(checks.check_look_from, right, stub, {
        "a window begins at": beside_its_window,
        "you draw all windows": all_windows,
        "over the pixels that ask": lambda maps, *rest: right(maps.mean(2, keepdim=True).expand_as(maps), *rest),
        "windows are numbered row by row": by_columns,
        "tokens of a window are numbered": token_by_columns,
        "wrong place": in_the_corner,
        "a column of the map": lambda maps, *rest: right(maps.transpose(2, 3), *rest),
        "average over them": lambda *given: right(*given).mean(0),
    })  # fmt: skip


def test_timed_bias(solved):
    right = solved["timed_bias"]

    def without_offset(tables, g):
        row, column = torch.arange(g * g) // g, torch.arange(g * g) % g
        return tables[:, (row[:, None] - row) * (2 * g - 1) + column[:, None] - column].permute(0, 3, 1, 2)

    def columns_first(tables, g):
        row, column = torch.arange(g * g) // g, torch.arange(g * g) % g
        down, across = row[:, None] - row + g - 1, column[:, None] - column + g - 1
        return tables[:, across * (2 * g - 1) + down].permute(0, 3, 1, 2)

    def looked_up(tables, g, stride, sign):
        row, column = torch.arange(g * g) // g, torch.arange(g * g) % g
        down, across = sign(row[:, None] - row) + g - 1, sign(column[:, None] - column) + g - 1
        return tables[:, down * stride + across].permute(0, 3, 1, 2)

    prove(checks.check_timed_bias, right, stub, {
        "2g - 1 entries, not g": lambda tables, g: looked_up(tables, g, g, lambda offset: offset),
        "without the sign": lambda tables, g: looked_up(tables, g, 2 * g - 1, torch.abs),
        "you take j - i": lambda tables, g: right(tables, g).transpose(2, 3),
        "rows apart come first": columns_first,
        "the heads stand last": lambda tables, g: right(tables, g).permute(0, 2, 3, 1),
        "the first one for all": lambda tables, g: right(tables[:1], g).expand(len(tables), -1, -1, -1),
        "add g - 1 to both": without_offset,
    })  # fmt: skip
