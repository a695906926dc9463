"""The exercises of notebook 15: solutions pass, stubs fail, typical wrong answers are named."""


import torch

from minidiff.course.checks import notebook_15 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch}  # by the notebook to its solutions


def stub(*args):
    ...


def test_pairs_in_windows(solved):
    prove(checks.check_pairs_in_windows, solved["pairs_in_windows"], stub, {
        "window^4": lambda size, window: (-(-size // min(size, window))) ** 2 * min(size, window) ** 2,
        "one window; add": lambda size, window: window**4,
        "a square": lambda size, window: -(-size // min(size, window)) * min(size, window) ** 4,
        "the whole map": lambda size, window: size**4,
        "round the number": lambda size, window: (size // min(size, window)) ** 2 * min(size, window) ** 4,
        "padded tokens": lambda size, window: size**2 * min(size, window) ** 2,
        "last windows are full": lambda size, window: real_pairs(size, min(size, window)),
        "of its own size": lambda size, window: (-(-size // window)) ** 2 * window**4,
    })  # fmt: skip


def real_pairs(size, side):
    """Pairs of real tokens alone, window by window."""
    lengths = [min(side, size - start) for start in range(0, size, side)]
    return sum((rows * columns) ** 2 for rows in lengths for columns in lengths)


def test_conv_from_merge(solved):
    right = solved["conv_from_merge"]
    prove(checks.check_conv_from_merge, right, stub, {
        "rows and columns are exchanged: merging": lambda weight: right(weight).transpose(2, 3),
        "the other way round": lambda weight: weight.unflatten(1, (-1, 2, 2)),
        "besides": lambda weight: weight.unflatten(1, (-1, 2, 2)).transpose(2, 3),
        "does not flip": lambda weight: right(weight).flip(2, 3),
        "Not quite: the channels must": lambda weight: weight.unflatten(1, (2, 2, -1)).transpose(1, 2),
        "only cut": lambda weight: weight.unflatten(1, (2, 2, -1)),
    })  # fmt: skip


def test_light_decode(solved):
    right = solved["light_decode"]

    def turned(h, last, units, ups, emb):
        for level in reversed(range(len(units))):
            h = units[level](torch.cat([last[level], h], dim=1), emb)
            h = ups[level - 1](h) if level else h
        return h

    def ends_early(h, last, units, ups, emb):
        for level in range(len(units) - 1, 0, -1):
            h = ups[level - 1](units[level](torch.cat([h, last[level]], dim=1), emb))
        return h

    def from_the_finest(h, last, units, ups, emb):
        for level in range(len(units)):
            h = units[level](torch.cat([h, last[level]], dim=1), emb)
        return h

    prove(checks.check_light_decode, right, stub, {
        "the skip comes second": turned,
        "silent": lambda h, last, *rest: right(h, [0 * skip for skip in last], *rest),
        "level 0 is missing": ends_early,
        "emb is missing": lambda *given: right(*given[:-1], 0 * given[-1]),
        "Sizes of tensors": from_the_finest,
        "this unit wants 8 channels": lambda h, last, units, ups, emb: units[-1](h, emb),
    })  # fmt: skip


def test_an_answer_may_empty_its_lists(solved):
    def popping(h, last, units, ups, emb):
        while units:
            h = units.pop()(torch.cat([h, last.pop()], dim=1), emb)
            h = ups.pop()(h) if ups else h
        return h

    checks.check_light_decode(popping)
