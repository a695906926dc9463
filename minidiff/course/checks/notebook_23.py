"""Checks of notebook 23: a filter of metadata, the passes that make a batch fit, a recipe for another batch."""

import math

from minidiff.course.exercises import Wrong, compare, exercise

GOOD = {"width": 512, "height": 300, "similarity": 0.31}
ASKED = (  # metadata, whether to keep it, what is wrong with another answer
    (GOOD, True, "is large enough and fits its caption, so keep it"),
    ({"width": 256, "height": 256, "similarity": 0.28}, True, "is just at both limits; 'at least' includes them"),
    ({"width": 900, "height": 200, "similarity": 0.4}, False, "has a shorter side below 256: ask about the smaller of"
     " both sides"),
    ({"width": 200, "height": 900, "similarity": 0.4}, False, "has a shorter side below 256: ask about the smaller of"
     " both sides"),
    ({"width": 300, "height": 300, "similarity": 0.2}, False, "does not fit its caption (similarity below 0.28)"),
    ({"width": 120, "height": 120, "similarity": 0.2}, False, "is too small, and does not fit its caption either"),
    ({"width": 300, "height": 300, "similarity": 0.0}, False, "has a similarity, and it is 0: that is not the same as"
     " having none"),
    ({"width": 300, "height": 300}, True, "has no similarity, and such pictures should be kept"),
    ({"width": 100, "height": 300}, False, "has no similarity, but it is too small all the same"),
)  # fmt: skip


@exercise("what is missing in the metadata is a case of its own: decide about it, before a million samples do.")
def check_keep(keep):
    for about, right, why in ASKED:
        try:
            answer = keep(dict(about))
        except KeyError as error:
            raise Wrong(f"Your function stops with KeyError {error} at {about}: not every sample has all the fields. "
                        "about.get(name, default) answers for those without.") from error  # fmt: skip
        if not isinstance(answer, bool) and answer not in (0, 1):
            raise Wrong(f"Your function returned {answer!r}; expected True or False.")
        if bool(answer) != right:
            raise Wrong(f"{'Kept' if answer else 'Not kept'}: {about}. It {why}.")


def smallest(batch, gpus, room):
    """The smallest number of passes that divides the batch and leaves at most `room` pictures in each, or 0."""
    parts = (n for n in range(1, batch // gpus + 1) if batch % (gpus * n) == 0)
    return next((n for n in parts if batch // (gpus * n) <= room), 0)


@exercise("memory is no limit to the batch, only to a pass: below one picture a pass you need another way.")
def check_passes(passes):
    cases = ((24e9, 500e6, 100e6, 10_080, 2), (16e9, 44e6, 117e6, 1024, 4), (24e9, 500e6, 390e6, 360, 2),
             (40e9, 582e6, 3.4e9, 64, 8), (16e9, 582e6, 390e6, 1200, 4), (10e9, 582e6, 390e6, 64, 1),
             (13e9, 582e6, 3.4e9, 8, 1), (80e9, 44e6, 117e6, 256, 1))  # fmt: skip
    for memory, weights, each, batch, gpus in cases:
        room = (memory - 20 * weights) // each
        right = smallest(batch, gpus, room)
        even = batch / gpus / room if room > 0 else -1
        mistakes = {
            "the batch is that of all GPUs: each takes its share": smallest(batch, 1, room) if gpus > 1 else -1,
            "with DDP every GPU holds all the weights":
                smallest(batch, gpus, (memory - 20 * weights / gpus) // each) if gpus > 1 else -1,
            "you forgot what the weights take, 20 bytes each": smallest(batch, gpus, memory // each),
            "a weight takes 20 bytes in training, not 4": smallest(batch, gpus, (memory - 4 * weights) // each),
            "a weight takes 20 bytes: weight, gradient, two moments and the average, not 16":
                smallest(batch, gpus, (memory - 16 * weights) // each),
            "the parts must be equal: take the next number that divides the share of a GPU": math.ceil(even),
            "rounded down, a pass is too large": math.floor(even),
            "that is the number of pictures in a pass; the number of passes is asked for": room,
            "one picture a pass always fits where anything does, but the smallest number of passes is asked for":
                batch // gpus if right else -1,
            "not even one picture fits beside the weights: return 0": 1 if right == 0 else -1,
        }  # fmt: skip
        compare(passes(memory, weights, each, batch, gpus), right, mistakes, rtol=0, atol=0.5,
                name=f"the number for {memory / 1e9:.0f} GB, {weights / 1e6:.0f} M weights, {each / 1e9:.2f} GB a "
                     f"picture, batch {batch} on {gpus} GPUs")  # fmt: skip


@exercise("count in pictures, not in steps; then only the noise of the gradient is left to allow for.")
def check_moved_to(moved_to):
    recipe = {"steps": 150_000, "warmup": 5000, "batch_size": 1024, "lr": 2e-4, "ema": 0.9999}
    for batch_size in (64, 256, 2048):
        mine, k = moved_to(dict(recipe), batch_size), 1024 / batch_size
        if not isinstance(mine, dict) or set(mine) != set(recipe):
            got = sorted(mine) if isinstance(mine, dict) else type(mine).__name__
            raise Wrong(f"Your function returned {got}; expected a dict with {', '.join(recipe)}.")
        ema, forgets = recipe["ema"], "the average should forget over as many pictures: (decay of one old step) = "
        expected = {
            "batch_size": (batch_size, {"this is still the batch of the recipe": 1024}),
            "steps": (round(150_000 * k), {
                "the number of pictures is steps times batch: a smaller batch needs more steps": round(150_000 / k),
                "the steps are as before, so the run sees another number of pictures": 150_000,
                "the number of pictures goes with the batch itself, not with its root": round(150_000 * k**0.5)}),
            "warmup": (round(5000 * k), {
                "the warm-up counts steps, too; keep its number of pictures": 5000,
                "a smaller batch needs more steps of warm-up, not fewer": round(5000 / k)}),
            "lr": (recipe["lr"] / k**0.5, {
                "the learning rate is as before": recipe["lr"],
                "divided by k, that is the rule for plain gradient descent; for Adam it is the root": 2e-4 / k,
                "a smaller batch is noisier and wants a smaller rate, not a larger one": 2e-4 * k**0.5,
                "multiplied by k, the rate goes the wrong way": 2e-4 * k}),
            "ema": (ema ** (1 / k), {
                "the decay counts steps, too, and it is as before": ema,
                f"{forgets}(decay of one new step)^k, and you raised to k instead of 1/k": ema**k,
                "dividing a decay makes another average altogether; think of powers": ema / k}),
        }  # fmt: skip
        for name, (right, mistakes) in expected.items():
            close = dict(rtol=1e-6, atol=1e-9) if name in ("lr", "ema") else dict(rtol=0, atol=1.5)
            compare(mine[name], right, mistakes, name=f"`{name}` for a batch of {batch_size}", **close)
        if not all(isinstance(mine[name], int) for name in ("steps", "warmup")):
            raise Wrong("`steps` and `warmup` are counts: make them whole numbers with round(...).")
