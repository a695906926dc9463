"""The exercises of notebook 14: solutions pass, stubs fail, typical wrong answers are named."""


import torch
import torch.nn.functional as F

from minidiff.course.checks import notebook_14 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch, "F": F}  # by the notebook to its solutions


def stub(*args):
    ...


def test_line_mask(solved):
    right = solved["line_mask"]

    def seam_after_s(n, w, s):
        late = torch.arange(n).view(-1, w) >= n - w + s if s else torch.zeros(n // w, w)
        return (late[:, :, None] != late[:, None]) * -100.0

    def not_cut(n, w, s):
        place = torch.arange(n).roll(-s)
        return torch.where((place[:, None] - place).abs() >= w, -100.0, 0.0)

    prove(checks.check_line_mask, right, stub, {
        "you have none": lambda n, w, s: right(n, w, 0),
        "rolled by -s": lambda n, w, s: right(n, w, -s),
        "exchanged": lambda n, w, s: -100 - right(n, w, s),
        "True and False": lambda n, w, s: (right(n, w, s) == 0).float(),
        "minus infinity": lambda n, w, s: torch.where(right(n, w, s) == 0, 0.0, -torch.inf),
        "s tokens before the end": seam_after_s,
        "both ways": lambda n, w, s: right(n, w, s).tril(),
        "one half": lambda n, w, s: right(n, w, s).triu(),
        "not only the last": lambda n, w, s: right(n, w, s)[-1],
        "cut it into windows": not_cut,
    })  # fmt: skip


def test_tf_shuffle(solved):
    right = solved["tf_shuffle"]
    prove(checks.check_tf_shuffle, right, stub, {
        "`F.pixel_shuffle` alone": lambda x: F.pixel_shuffle(x, 2),
        "wrong way": lambda x: F.pixel_shuffle(x.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2), 2),
        "exchanged": lambda x: right(x.unflatten(1, (2, 2, -1)).transpose(1, 2).flatten(1, 3)),
        "shuffle is missing": lambda x: x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2),
        "channels stand last": lambda x: right(x).permute(0, 2, 3, 1),
    })  # fmt: skip


def test_reached(solved):
    right = solved["reached"]

    def bare(allowed):
        seen = torch.eye(len(allowed[0]))
        for pairs in allowed:
            seen = pairs.float() @ seen
        return seen > 0

    def in_place(allowed):
        result = right(allowed)
        for pairs in allowed:
            pairs.fill_diagonal_(True)
        return result

    prove(checks.check_reached, right, stub, {
        "residual": bare,
        "around every layer": lambda allowed: bare(allowed) | torch.eye(12, dtype=torch.bool),
        "wrong order": lambda allowed: right(allowed[::-1]),
        "rows and columns": lambda allowed: right(allowed).T,
        "one step only": lambda allowed: torch.stack(allowed).any(0) | torch.eye(12, dtype=torch.bool),
        "True and False": lambda allowed: right(allowed).float(),
        "now changed": in_place,
    })  # fmt: skip
