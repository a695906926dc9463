"""The exercises of notebook 23: solutions pass, stubs fail, typical wrong answers are named."""


import torch

from minidiff.course.checks import notebook_23 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch}  # by the notebook to its solutions


def stub(*args):
    ...


def test_keep(solved):
    def wrong(side=min, least=256, default=1.0, limit=0.28):
        return lambda about: side(about["width"], about["height"]) >= least and (
            about.get("similarity", default) >= limit)

    prove(checks.check_keep, solved["keep"], stub, {
        "KeyError": lambda about: min(about["width"], about["height"]) >= 256 and about["similarity"] >= 0.28,
        "smaller of both": wrong(side=max),
        "just at both limits": wrong(least=257),
        "should be kept": wrong(default=0.0),
        "does not fit its caption": wrong(limit=0.0),
        "not the same as having none": lambda about: min(about["width"], about["height"]) >= 256
        and (about.get("similarity") or 1) >= 0.28,
        "too small all the same": lambda about: "similarity" not in about or wrong()(about),
        "True or False": lambda about: "yes",
    })  # fmt: skip


def test_passes(solved):
    def wrong(a_weight=20, share=True, sharded=False):
        def passes(memory, weights, each, batch, gpus):
            taken = a_weight * weights / (gpus if sharded else 1)
            return checks.smallest(batch, gpus if share else 1, (memory - taken) // each)
        return passes

    def uneven(memory, weights, each, batch, gpus):
        room = (memory - 20 * weights) // each
        return -int(-(batch / gpus) // room) if room > 0 else 0

    def never_nothing(*arguments):
        return solved["passes"](*arguments) or 1

    prove(checks.check_passes, solved["passes"], stub, {
        "you forgot what the weights take": wrong(a_weight=0),
        "not 4": wrong(a_weight=4),
        "not 16": wrong(a_weight=16),
        "each takes its share": wrong(share=False),
        "holds all the weights": wrong(sharded=True),
        "must be equal": uneven,
        "in a pass; the number of passes": lambda memory, weights, each, batch, gpus: (memory - 20 * weights) // each,
        "the smallest number": lambda memory, weights, each, batch, gpus: batch // gpus,
        "return 0": never_nothing,
    })  # fmt: skip


def test_moved_to(solved):
    def wrong(**powers):
        """The power of k that each value gets."""
        powers = {"steps": 1, "warmup": 1, "lr": -0.5, "ema": -1} | powers

        def moved_to(recipe, batch_size):
            k = recipe["batch_size"] / batch_size
            return {"steps": round(recipe["steps"] * k ** powers["steps"]), "batch_size": batch_size,
                    "warmup": round(recipe["warmup"] * k ** powers["warmup"]), "lr": recipe["lr"] * k ** powers["lr"],
                    "ema": recipe["ema"] ** (k ** powers["ema"])}
        return moved_to

    prove(checks.check_moved_to, solved["moved_to"], stub, {
        "expected a dict": lambda recipe, size: 3,
        "still the batch of the recipe": lambda recipe, size: wrong()(recipe, size) | {"batch_size": 1024},
        "a smaller batch needs more steps": wrong(steps=-1),
        "the steps are as before": wrong(steps=0),
        "keep its number of pictures": wrong(warmup=0),
        "plain gradient descent": wrong(lr=-1),
        "noisier": wrong(lr=0.5),
        "as before": wrong(lr=0),
        "counts steps, too, and it is as before": wrong(ema=0),
        "raised to k": wrong(ema=1),
        "whole numbers": lambda recipe, size: {key: float(value) for key, value in wrong()(recipe, size).items()},
    })  # fmt: skip
