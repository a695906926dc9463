"""Shapes: captioned scenes of one or two objects, drawn as they are asked for, with an oracle that reads them back.

    data = load_dataset("shapes", size=32, scenes="both")
    data[7].caption                   # 'a small yellow triangle'
    shapes.read(data[7].image)        # Scene(things=(Thing('small', 'yellow', 'triangle'),), relation=None)
    shapes.score(images, captions)    # how many of a model's pictures show what was asked for
"""

import numpy as np
import torch

from minidiff.datasets.reading import read, score
from minidiff.datasets.record import Record, expect, expect_whole
from minidiff.datasets.scenes import (
    COLOURS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    attributes,
    canonical,
    chosen_scenes,
    describe,
    holds,
    paint,
    parse,
    random_scenes,
    substream,
    uniforms,
)  # fmt: skip

__all__ = ["COLOURS", "HELD_OUT", "RELATIONS", "SHAPES", "SIZES", "Scene", "Shapes", "Thing", "canonical", "describe",
           "load", "parse", "read", "score"]  # fmt: skip


def load(*, size=16, split="train", scenes="both", seed=0, num=100_000, held_out=None, unsaid=0.0, turned=0.0):
    """The `Shapes` data set of pictures (3, size, size), size >= 16.

    `scenes` "one", "two" or "both" objects. Item i of a seed is the same scene at every size and for every `num`, which
    is only the length that samplers see: nothing is stored. `split` "test" draws other scenes than "train".

    `held_out` is a list of pairs that "train" and "test" never show, (colour, shape) or (relation, shape), or
    "default", which means `HELD_OUT`; then the split "held_out" shows at least one of them in every picture. With
    ("left of", "cross") no cross stands left of anything, however that is put. `unsaid` is the share of sizes that
    captions leave out: 'a red circle above a small blue square'. `turned` is the share of captions of two objects that
    are turned, where need be, to name the left or upper one first: with 0.5 three of four captions do, and a network
    can first learn the rule and then its exceptions. By label a picture is still its scene's first object.
    """
    return Shapes(size, split, scenes, seed, num, held_out, unsaid, turned)


class Shapes(torch.utils.data.Dataset):
    """`num` scenes; `.classes` are the 24 names "red circle", and a label says what the first object is."""

    def __init__(self, size, split, scenes, seed, num, held_out=None, unsaid=0.0, turned=0.0):
        expect_whole("shapes", "size", size, 16)
        expect("shapes", "split", split, ("train", "test") if held_out is None else ("train", "test", "held_out"))
        expect("shapes", "scenes", scenes, ("one", "two", "both"))
        expect_whole("shapes", "seed", seed, 0, 2**62)
        expect_whole("shapes", "num", num, 1, 2**40)
        self.held_out = None if held_out is None else check_pairs(held_out, scenes, split)
        for name, share, of in (("unsaid", unsaid, "sizes"), ("turned", turned, "captions")):
            if not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise ValueError(f"data set 'shapes': {name}={share!r}, expected a share of the {of}, from 0 to 1.")
        self.size, self.split, self.scenes, self.num = size, split, scenes, num
        self.unsaid, self.turned = unsaid, turned
        self.stream = 2 * seed + (split != "train")
        self.classes = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]

    def __len__(self):
        return self.num

    def batch(self, items):
        """Many items at once: images (B, 3, size, size), labels (B,), list of captions."""
        geometry = self._geometry(items)
        labels = geometry.colour[:, 0] * len(SHAPES) + geometry.shape[:, 0]
        captions = [describe(scene) for scene in self._said(attributes(geometry), items)]
        return paint(geometry, self.size), torch.from_numpy(labels), captions

    def attributes(self, items):
        """The list of Scenes that these items show, as their captions tell them, but with all sizes."""
        return attributes(self._geometry(items))

    def _said(self, scenes, items):
        """The scenes as captions tell them: some `turned`, and without the sizes that are left `unsaid`."""
        if self.turned:
            turn = uniforms(substream(self.stream, -1), self._numbers(items), 1)[:, 0] < self.turned
            scenes = [canonical(scene) if turned else scene for scene, turned in zip(scenes, turn)]
        if not self.unsaid:
            return scenes
        silent = uniforms(substream(self.stream, 0), self._numbers(items), 2) < self.unsaid
        return [
            scene._replace(things=tuple(t._replace(size=None) if s else t for t, s in zip(scene.things, row)))
            for scene, row in zip(scenes, silent)
        ]

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, items):
        """What a DataLoader calls: the Records of a batch, painted together."""
        images, labels, captions = self.batch(items)
        return [Record(*row) for row in zip(images, labels.tolist(), captions, strict=True)]

    def _geometry(self, items):
        items = self._numbers(items)
        if self.held_out is None:
            return random_scenes(self.stream, items, self.scenes)
        return chosen_scenes(self.stream, items, self.scenes, self.held_out, self.split == "held_out")

    def _numbers(self, items):
        items = np.asarray(items, dtype=np.int64)
        items = np.where(items < 0, items + self.num, items)
        if len(items) and not 0 <= items.min() <= items.max() < self.num:
            raise IndexError(f"data set 'shapes': item {items.max()} of {self.num}; ask for more with num=...")
        return items


def check_pairs(held_out, scenes, split):
    """The pairs as a tuple. Raises ValueError for what is no pair, and where a split would be without any scene."""
    if isinstance(held_out, str) and held_out != "default":
        raise ValueError(
            f"data set 'shapes': held_out={held_out!r} is not 'default' and no list of pairs, like [('red', 'circle'),"
            " ('above', 'square')]."
        )
    pairs = HELD_OUT if isinstance(held_out, str) else tuple(map(tuple, held_out))
    for pair in pairs:
        if len(pair) != 2 or pair[0] not in {**COLOURS, **RELATIONS} or pair[1] not in SHAPES:
            raise ValueError(
                f"data set 'shapes': the held-out pair {pair!r} is not (colour or relation, shape), with colours"
                f" {', '.join(COLOURS)}, relations {', '.join(RELATIONS)}, shapes {', '.join(SHAPES)}."
            )
    shown = holds(random_scenes(0, np.arange(4000), scenes), pairs).mean()
    if shown > 0.99 or (shown == 0 and split == "held_out"):
        why = "almost every scene shows one of them; hold fewer out" if shown else (
            "no scene shows one of them; name a pair, and for relations scenes of two objects")  # fmt: skip
        raise ValueError(f"data set 'shapes': held_out={list(pairs)!r} with scenes={scenes!r}: {why}.")
    return pairs
