"""Checks of notebook 18: a share and its error, the gentlest scale that is good enough, pairs kept secret."""

import torch

from minidiff.course.exercises import Wrong, compare, exercise, unpack
from minidiff.datasets.shapes import COLOURS, RELATIONS, SHAPES, load, parse
from minidiff.metrics import held_out_groups


@exercise("four times as many pictures halve the error, so a tenth of a percent costs a quarter of a million of them.")
def check_share_and_error(share_and_error):
    for right in ([True, True, True, False], [False] * 30 + [True] * 10, [True] * 5):
        count, share = len(right), sum(right) / len(right)
        mine, error = unpack(share_and_error(list(right)), "share", "error")
        spread = (share * (1 - share)) ** 0.5
        compare(mine, share, {
            "you returned how many are right; divide by their number": share * count,
            "that is the share of wrong ones": 1 - share,
        }, name=f"the share of {count} pictures")  # fmt: skip
        compare(error, spread / count**0.5, {
            "that is the spread of single pictures; the error of their mean is sqrt(N) times smaller": spread,
            "the square root is missing": share * (1 - share) / count,
            "divide by N under the root, or by sqrt(N) outside of it": spread / count,
            "that is half of a 95 % interval, about two standard errors": 1.96 * spread / count**0.5,
            "this divides by N - 1. For a share the formula has N": spread / max(count - 1, 1) ** 0.5,
        }, name=f"the error of {count} pictures")  # fmt: skip


def scenario(changes, count=200):
    """{scale: (N,) bool}: 160 of 200 captions right, but for so many lost and gained: {scale: (lost, gained)}."""
    order = torch.randperm(count)
    base, right = torch.arange(count) < 160, {}
    for scale, (lost, gained) in changes.items():
        own = base.clone()
        own[:lost], own[160:160 + gained] = False, True
        right[scale] = own[order]
    return right


def choose(right, errors=2.0, paired=True, among=min):
    """The gentlest scale that is good enough, or a choice with one mistake."""
    best = max(right, key=lambda scale: right[scale].double().mean())
    enough = []
    for scale, own in right.items():
        gap = right[best].double() - own.double()
        error = gap.std() if paired else (right[best].double().var() + own.double().var()).sqrt()
        if gap.mean() <= errors * error / len(gap) ** 0.5:
            enough.append(scale)
    return among(enough)


@exercise("measured on the same captions, a difference is far surer than its two shares.")
def check_gentlest(gentlest):
    cases = [
        scenario({1.0: (50, 0), 3.0: (0, 0), 8.0: (5, 4)}),
        scenario({1.0: (60, 0), 2.0: (12, 6), 3.0: (6, 5), 5.0: (0, 0)}),
        scenario({4.0: (4, 3), 6.0: (0, 0), 2.0: (8, 6), 0.5: (90, 0)}),
        scenario({1.0: (80, 0), 2.0: (9, 0), 2.5: (3, 2), 3.0: (0, 0)}),
        scenario({1.0: (30, 0), 2.0: (0, 0), 3.0: (0, 0)}),
    ]
    for right in cases:
        given = {scale: own.clone() for scale, own in right.items()}
        answer, expected = gentlest(given), choose(right)
        if isinstance(answer, (list, tuple, set)) or answer not in right:
            raise Wrong(f"The answer is {answer!r}; expected one of the scales, {', '.join(map(str, right))}.")
        if answer == expected:
            continue
        best = max(right, key=lambda scale: right[scale].double().mean())
        wrong = {
            "that is the best scale; a smaller one is as good within the error": best,
            "that is the largest scale that is good enough; take the smallest": choose(right, among=max),
            "that is the first scale that is good enough; take the smallest, in whatever order they come":
                choose(right, among=lambda enough: enough[0]),
            "you treat the two shares as independent; take the spread of the differences, caption by caption":
                choose(right, paired=False),
            "that allows one standard error, not two": choose(right, errors=1.0),
            "that is the smallest scale; it must be good enough, too, within two errors std(d) / sqrt(N) (not two"
            " spreads std(d))": min(right),
        }  # fmt: skip
        for words, value in wrong.items():
            if answer == value != expected:
                raise Wrong(f"Not quite: {words}. You chose {answer:g}, expected {expected:g}.")
        raise Wrong(f"Not yet: you chose {answer:g}, expected {expected:g}.")


def loose(caption, pair):
    """Both words occur, wherever they belong to."""
    return pair[0] in caption and pair[1] in caption


def as_said(caption, pair, both=False):
    """As the caption puts it; without `both`, a relation is that of the first thing alone."""
    scene = parse(caption)
    places = [scene.relation, scene.relation if both else None]
    return any(thing.shape == pair[1] and pair[0] in (thing.colour, place)
               for thing, place in zip(scene.things, places))  # fmt: skip


@exercise("so the split keeps a picture back, and not a sentence.")
def check_shows(shows):
    captions = load(size=16, split="test", scenes="both").batch(range(300))[2]
    for pair in (("red", "triangle"), ("left of", "cross"), ("above", "triangle"), ("right of", "circle"),
                 ("below", "square"), ("black", "cross")):  # fmt: skip
        assert pair[1] in SHAPES and pair[0] in {**COLOURS, **RELATIONS}
        right = held_out_groups(captions, [pair])["held out"].tolist()
        mistakes = {  # a relation said of both things is not told from `loose` by the pairs with relations
            "the second thing stands the *converse* way to the first: use RELATIONS[relation] for it":
                lambda caption, pair: as_said(caption, pair, both=True),
            "it is enough for you that both words occur; they must belong to the same thing": loose,
            "the relation is that of the first thing, and the second thing stands the converse way: 'a circle right of"
            " a cross' shows a cross left of something": as_said,
            "you look at the first thing only": lambda caption, pair: first_only(caption, pair),
        }  # fmt: skip
        answers = [shows(caption, pair) for caption in captions]
        if any(not isinstance(answer, (bool, int)) for answer in answers):
            raise Wrong(f"`shows` returned {answers[0]!r}; expected True or False.")
        answers = [bool(answer) for answer in answers]
        if answers == right:
            continue
        for words, mistake in mistakes.items():
            if answers == [mistake(caption, pair) for caption in captions]:
                raise Wrong(f"Not quite: {words}. (The pair is {pair}.)")
        k = next(k for k, answer in enumerate(answers) if answer != right[k])
        raise Wrong(f"Not yet: for {captions[k]!r} and the pair {pair} you say {answers[k]}, expected {right[k]}.")


def first_only(caption, pair):
    """Only the first thing is looked at."""
    scene = parse(caption)
    return scene.things[0].shape == pair[1] and pair[0] in (scene.things[0].colour, scene.relation)
