"""Checks of notebook 14: the mask of a rolled line, two orders of a shuffle, who is reached."""

import torch
import torch.nn.functional as F

from minidiff.course.exercises import compare, exercise


@exercise("only the last window has a seam: one corner of the picture, in two dimensions a whole row and column.")
def check_line_mask(line_mask):
    for n, w, s in ((12, 4, 2), (12, 4, 1), (15, 5, 3), (8, 4, 0)):
        right, forward, unrolled = (_line_mask(n, w, roll) for roll in (s, -s, 0))
        mistakes = {
            "where the roll brought two tokens together there is a seam in the last window; you have none": unrolled,
            "the line is rolled by -s: the first s tokens come to its end, so the seam is in the last window": forward,
            "0 and -100 are exchanged": -100 - right,
            "this is True and False, or 1 and 0; return what is added to the logits, 0 or -100": (right == 0).float(),
            "-100 and not minus infinity": torch.where(right == 0, 0.0, -torch.inf),
            "the sign: -100 forbids, 100 would invite": -right,
            "the seam is s tokens before the end of the line, not after the first s of the last window":
                _seam(n, w, w - s) if s else right + 1,
            "all windows get a seam here; only the last one has one": right[-1:].expand(n // w, -1, -1),
            "a seam works both ways: if i may not look at j, j may not look at i": right.tril(),
            "forbidden is a pair, i with j and j with i; you have one half": right.triu(),
            "return one mask for each window, not only the last": right[-1],
            "you have the mask of the whole line; cut it into windows: (n / w, w, w)": _whole(n, w, s),
        }  # fmt: skip
        compare(line_mask(n, w, s), right, mistakes, name=f"the mask for n = {n}, w = {w}, s = {s}")


def _line_mask(n, w, roll):
    place = torch.arange(n).roll(-roll).view(-1, w)
    return torch.where((place[:, :, None] - place[:, None]).abs() >= w, -100.0, 0.0)


def _seam(n, w, before):
    """The mask where the last `before` tokens of the last window are kept apart from its others."""
    late = torch.arange(n).view(-1, w) >= n - before
    return (late[:, :, None] != late[:, None]) * -100.0


def _whole(n, w, s):
    place = torch.arange(n).roll(-s)
    return torch.where((place[:, None] - place).abs() >= w, -100.0, 0.0)


@exercise("sorting channels is a matter of names: say which is (row, column, C), and transpose.")
def check_tf_shuffle(tf_shuffle):
    for batch, c, height, width in ((2, 3, 4, 5), (1, 5, 2, 2), (3, 4, 3, 3)):
        x = torch.randn(batch, 4 * c, height, width)
        parts = x.view(batch, 2, 2, c, height, width)  # row, column, C
        right = parts.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)
        turned = x.unflatten(1, (c, 4)).transpose(1, 2).flatten(1, 2)
        mistakes = {
            "`F.pixel_shuffle` alone reads the channels as (C, row, column): sort them before": F.pixel_shuffle(x, 2),
            "you sorted the wrong way: from (C, row, column) to (row, column, C)": F.pixel_shuffle(turned, 2),
            "rows and columns of the small squares are exchanged":
                parts.permute(0, 3, 4, 2, 5, 1).flatten(4).flatten(2, 3),
            "the order of the channels is right now, and the shuffle is missing":
                x.unflatten(1, (4, c)).transpose(1, 2).flatten(1, 2),
            "the channels stand last in your result; torch has them second": right.permute(0, 2, 3, 1),
        }  # fmt: skip
        compare(tf_shuffle(x), right, mistakes, name="the picture")


@exercise("reach is a product of masks. A gradient would tell the same, and how strongly.")
def check_reached(reached):
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        allowed = [torch.rand(12, 12, generator=generator) < 0.12 for _ in range(3)]
        given, right = [pairs.clone() for pairs in allowed], _reached(allowed)
        paths = torch.eye(12)
        for pairs in allowed:
            paths = (pairs.float() + torch.eye(12)) @ paths
        bare = torch.eye(12)
        for pairs in allowed:
            bare = pairs.float() @ bare
        every = torch.stack(allowed).any(0)
        mistakes = {
            "a residual connection brings each token on, whatever the masks say: add the diagonal": bare > 0,
            "the layers are in the wrong order: the first one acts on the inputs, so it is the factor on the right":
                _reached(allowed[::-1]),
            "rows and columns are exchanged: [i, j] says that output i depends on input j": right.T,
            "this is one step only; what a token has seen it passes on to whoever looks at it later":
                every | torch.eye(12, dtype=torch.bool),
            "the residual connection is around every layer, not once around them all":
                (bare > 0) | torch.eye(12, dtype=torch.bool),
            "you count the ways; return whether there is one": paths,
            "this is 0 and 1; return True and False": right.float(),
        }
        result = reached(allowed)
        if isinstance(result, torch.Tensor) and result.dtype != torch.bool:
            mistakes |= {"this is 0 and 1; return True and False": right.to(result.dtype)}
            compare(result, right.float() + 2, mistakes, name="who is reached")  # a wrong kind is wrong
        compare(result, right, mistakes, name="who is reached")
        compare(torch.stack(allowed), torch.stack(given), {}, name="the masks that you were given, now changed,")


def _reached(allowed):
    seen = torch.eye(len(allowed[0]))
    for pairs in allowed:
        seen = ((pairs.float() + torch.eye(len(pairs))) @ seen > 0).float()
    return seen > 0
