"""The exercises of notebook 17: solutions pass, stubs fail, typical wrong answers are named."""

import torch

from minidiff.course.checks import notebook_17 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch}  # by the notebook to its solutions


def stub(*args):
    ...


def test_pool(solved):
    def ratio(over):
        return lambda tokens, mask: (tokens * mask[..., None]).sum(1) / over(mask)

    prove(checks.check_pool, solved["pool"], stub, {
        "padding counts": lambda tokens, mask: tokens.mean(1),
        "number of all rows": ratio(lambda mask: mask.shape[1]),
        "the sum, not yet divided": ratio(lambda mask: 1),
        "0/0": ratio(lambda mask: mask.sum(1, keepdim=True)),
        "turned round": lambda tokens, mask: solved["pool"](tokens, ~mask),
        "its own number of words": ratio(lambda mask: mask.sum() / len(mask)),
        "root of the number": ratio(lambda mask: mask.sum(1, keepdim=True).clamp(min=1).sqrt()),
        "the first word alone": lambda tokens, mask: tokens[:, 0] * mask[:, :1],
    })  # fmt: skip


def test_map_of_word(solved):
    right = solved["map_of_word"]

    def summed(weights, word, extras):
        return len(weights) * right(weights, word, extras)

    def scaled(weights, word, extras):
        return right(weights, word, extras) / right(weights, word, extras).sum()

    def at_the_end(weights, word, extras):
        return right(torch.cat([weights[:, -extras:], weights[:, :-extras]], 1) if extras else weights, word, extras)

    prove(checks.check_map_of_word, right, stub, {
        "heads are summed": summed,
        "first head alone": lambda weights, word, extras: right(weights[:1], word, extras),
        "strongest head": lambda weights, word, extras: right(weights.amax(0, keepdim=True), word, extras),
        "swapped": lambda *a: right(*a).T,
        "need not": scaled,
        "counted from 1": lambda weights, word, extras: right(weights, word - 1, extras),
        "not at the end": at_the_end,
    })  # fmt: skip


def test_twins(solved):
    pair = "a small red triangle right of a small yellow square", "a small yellow square right of a small red triangle"
    prove(checks.check_twins, solved["twins"], stub, {
        "the same sentence": lambda: pair[:1] * 2,
        "the same picture": lambda: (pair[0], "a small yellow square left of a small red triangle"),
        "not both captions": lambda: ("a cat", "a dog"),
        "different words": lambda: (pair[0], pair[0].replace("red", "green")),
        "Exchange less": lambda: pair,
        "two strings": lambda: (1, 2),
        "returned 3 values": lambda: (*pair, pair[0]),
    })  # fmt: skip
