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
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    attributes,
    canonical,
    describe,
    paint,
    parse,
    random_scenes,
)  # fmt: skip

__all__ = ["COLOURS", "RELATIONS", "SHAPES", "SIZES", "Scene", "Shapes", "Thing", "canonical", "describe", "load",
           "parse", "read", "score"]  # fmt: skip


def load(*, size=16, split="train", scenes="both", seed=0, num=100_000):
    """The `Shapes` data set of pictures (3, size, size), size >= 16.

    `scenes` "one", "two" or "both" objects. Item i of a seed is the same scene at every size and for every `num`, which
    is only the length that samplers see: nothing is stored. `split` "test" draws other scenes than "train".
    """
    return Shapes(size, split, scenes, seed, num)


class Shapes(torch.utils.data.Dataset):
    """`num` scenes; `.classes` are the 24 names "red circle", and a label says what the first object is."""

    def __init__(self, size, split, scenes, seed, num):
        expect_whole("shapes", "size", size, 16)
        expect("shapes", "split", split, ("train", "test"))
        expect("shapes", "scenes", scenes, ("one", "two", "both"))
        expect_whole("shapes", "seed", seed, 0, 2**62)
        expect_whole("shapes", "num", num, 1, 2**40)
        self.size, self.scenes, self.num = size, scenes, num
        self.stream = 2 * seed + (split == "test")
        self.classes = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]

    def __len__(self):
        return self.num

    def batch(self, items):
        """Many items at once: images (B, 3, size, size), labels (B,), list of captions."""
        geometry = self._geometry(items)
        labels = geometry.colour[:, 0] * len(SHAPES) + geometry.shape[:, 0]
        captions = [describe(scene) for scene in attributes(geometry)]
        return paint(geometry, self.size), torch.from_numpy(labels), captions

    def attributes(self, items):
        """The list of Scenes that these items show, as their captions tell them."""
        return attributes(self._geometry(items))

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, items):
        """What a DataLoader calls: the Records of a batch, painted together."""
        images, labels, captions = self.batch(items)
        return [Record(*row) for row in zip(images, labels.tolist(), captions, strict=True)]

    def _geometry(self, items):
        items = np.asarray(items, dtype=np.int64)
        items = np.where(items < 0, items + self.num, items)
        if len(items) and not 0 <= items.min() <= items.max() < self.num:
            raise IndexError(f"data set 'shapes': item {items.max()} of {self.num}; ask for more with num=...")
        return random_scenes(self.stream, items, self.scenes)
