"""The exercises of notebook 12: solutions pass, stubs fail, typical wrong answers are named."""


import torch

from minidiff.course.checks import notebook_12 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch}  # by the notebook to its solutions


def stub(*args):
    ...


def test_gate_gradients(solved):
    prove(checks.check_gate_gradients, solved["gate_gradients"], stub, {
        "you return one for each": lambda s, f, g: (s * f, g[:, None] * s),
        "do not average": lambda s, f, g: ((s * f).mean(1), g[:, None] * s),
        "over the batch": lambda s, f, g: ((s * f).sum((0, 1)), g[:, None] * s),
        "multiply by the branch": lambda s, f, g: (s.sum(1), g[:, None] * s),
        "does not contain the gate": lambda s, f, g: ((g[:, None] * s * f).sum(1), g[:, None] * s),
        "wrong order": lambda s, f, g: (g[:, None] * s, (s * f).sum(1)),
        "pass the gate": lambda s, f, g: ((s * f).sum(1), s),
        "does not pass f": lambda s, f, g: ((s * f).sum(1), s + g[:, None] * s),
        "does not contain the branch": lambda s, f, g: ((s * f).sum(1), g[:, None] * s * f),
        "expected 2": lambda s, f, g: (s * f).sum(1),
    })  # fmt: skip


def test_dit_weights(solved):
    right = solved["dit_weights"]

    def less(missing):
        return lambda depth, d, p: right(depth, d, p) - missing(depth, d, p)

    def no_biases(depth, d, p):
        blocks = depth * (4 * d * d + 8 * d * d + 6 * d * d)
        return 4 * p * p * d + (32 // p) ** 2 * d + 256 * d + d * d + 1001 * d + blocks + 2 * d * d + 8 * p * p * d

    prove(checks.check_dit_weights, right, stub, {
        "biases are missing": no_biases,
        "fixed positions": less(lambda depth, d, p: (32 // p) ** 2 * d),
        "'no class'": less(lambda depth, d, p: d),
        "8 channels, not 4": less(lambda depth, d, p: 4 * p * p * (d + 1)),
        "norm before the last layer": less(lambda depth, d, p: 2 * d * (d + 1)),
        "d -> 6 d in each": less(lambda depth, d, p: depth * 6 * d * (d + 1)),
        "no weights of their own": less(lambda depth, d, p: -(4 * depth + 2) * d),
        "you have the second only": less(lambda depth, d, p: 257 * d),
        "patch embedding is missing": less(lambda depth, d, p: d * (4 * p * p + 1)),
        "last linear layer is missing": less(lambda depth, d, p: 8 * p * p * (d + 1)),
        "four times as wide": less(lambda depth, d, p: depth * (6 * d * d + 3 * d)),
        "less 32,963,360, is 16 where 0 is expected": less(lambda depth, d, p: -16),
    })  # fmt: skip
    checks.check_dit_weights.__wrapped__(lambda depth, d, p: float(right(depth, d, p)))  # raises where it is wrong


def test_adaln_single(solved):
    right = solved["adaln_single"]
    prove(checks.check_adaln_single, right, stub, {
        "they are added": lambda shared, tables: shared.unflatten(1, (6, -1)) * tables[:, None],
        "the pictures come first": lambda shared, tables: right(shared, tables).transpose(0, 1),
        "d groups of six": lambda shared, tables: shared.unflatten(1, (-1, 6)).transpose(1, 2) + tables[:, None],
        "tables are missing": lambda shared, tables: right(shared, 0 * tables),
        "in one row": lambda shared, tables: shared + tables.flatten(1)[:, None],
    })  # fmt: skip
