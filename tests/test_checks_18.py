"""The exercises of notebook 18: solutions pass, stubs fail, typical wrong answers are named."""

import torch

from minidiff.course.checks import notebook_18 as checks
from minidiff.course.exercises import prove
from minidiff.datasets.shapes import RELATIONS, parse

GIVEN = {"torch": torch, "RELATIONS": RELATIONS, "parse": parse}  # by the notebook to its solutions


def stub(*args):
    ...


def test_share_and_error(solved):
    right = solved["share_and_error"]

    def with_error(error):
        return lambda flags: (right(flags)[0], error(sum(flags) / len(flags), len(flags)))

    prove(checks.check_share_and_error, right, stub, {
        "divide by their number": lambda flags: (sum(flags), right(flags)[1]),
        "share of wrong ones": lambda flags: (1 - right(flags)[0], right(flags)[1]),
        "spread of single pictures": with_error(lambda p, n: (p * (1 - p)) ** 0.5),
        "square root is missing": with_error(lambda p, n: p * (1 - p) / n),
        "under the root": with_error(lambda p, n: (p * (1 - p)) ** 0.5 / n),
        "half of a 95 % interval": with_error(lambda p, n: 1.96 * (p * (1 - p) / n) ** 0.5),
        "divides by N - 1": with_error(lambda p, n: (p * (1 - p) / (n - 1)) ** 0.5),
        "expected 2": lambda flags: right(flags)[:1],
    })  # fmt: skip


def test_gentlest(solved):
    choose = checks.choose
    prove(checks.check_gentlest, solved["gentlest"], stub, {
        "that is the best scale": lambda right: max(right, key=lambda scale: right[scale].double().mean()),
        "the largest scale that is good enough": lambda right: choose(right, among=max),
        "in whatever order": lambda right: choose(right, among=lambda enough: enough[0]),
        "treat the two shares as independent": lambda right: choose(right, paired=False),
        "one standard error, not two": lambda right: choose(right, errors=1.0),
        "not two spreads": lambda right: choose(right, errors=2 * len(right[min(right)]) ** 0.5),
        "expected one of the scales": lambda right: [choose(right)],
        "it must be good enough": min,
    })  # fmt: skip


def test_shows(solved):
    right = solved["shows"]
    prove(checks.check_shows, right, stub, {
        "both words occur": checks.loose,
        "is that of the first thing": checks.as_said,
        "*converse*": lambda caption, pair: checks.as_said(caption, pair, both=True),
        "first thing only": checks.first_only,
        "Not yet: for": lambda caption, pair: not right(caption, pair),
        "expected True or False": lambda caption, pair: caption,
    })  # fmt: skip
