"""Scenes of one or two coloured shapes: drawn at random by number, painted at any size, described in words.

Everything here is a function of numbers, on whole batches: `random_scenes` turns item numbers into geometry, `paint`
turns geometry into pictures, `describe` and `parse` go between attributes and captions. shapes.py makes the data set of
it and reading.py goes the other way, from the picture to the attributes.
"""

import itertools
import re
from typing import NamedTuple

import numpy as np
import torch

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {  # red, green, blue of 255; on white
    "red": (225, 35, 40),
    "green": (35, 160, 65),
    "blue": (40, 85, 225),
    "yellow": (250, 200, 20),
    "purple": (150, 50, 190),
    "black": (30, 30, 35),
}
SIZES = {"small": (0.26, 0.29), "large": (0.39, 0.42)}  # width and height as a share of the picture's side
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}  # and their converse
CROSS_ARM = 0.4  # width of a cross's arms as a share of its width
HELD_OUT = (  # the pairs of held_out="default": things, and where a shape stands when there are two
    ("red", "triangle"), ("green", "square"), ("blue", "cross"), ("yellow", "circle"),
    ("left of", "cross"), ("above", "triangle"),
)  # fmt: skip
GAP = 0.126  # between two objects, as a share of the side: at 16 pixels at least one whole column stays white


class Thing(NamedTuple):
    """One object: `size` "small" or "large", `colour`, `shape`."""

    size: str
    colour: str
    shape: str


class Scene(NamedTuple):
    """What a picture shows: one Thing, or two and the `relation` of the first to the second (None for one)."""

    things: tuple
    relation: str | None = None


class Geometry(NamedTuple):
    """A batch of scenes in numbers, numpy arrays (B, 2), one column an object; `count` (B,) is 1 or 2.

    `shape` and `colour` are indices, `large` bool, `x y` the centre and `width` the extent, as shares of the side.
    `relation` (B,) is the index in RELATIONS of the first object's place, -1 for one object.
    """

    count: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    large: np.ndarray
    x: np.ndarray
    y: np.ndarray
    width: np.ndarray
    relation: np.ndarray


def uniforms(seed, items, count):
    """(B, count) float64 in [0, 1), a fixed function of seed and item number: splitmix64, a counter-based generator.

    Not numpy's own generators: their streams may change from version to version, and one would be needed per item.
    """
    state = np.asarray(items, dtype=np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    bits = mix(state + mix([seed + 1]))
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**53


def mix(state):
    """The output of splitmix64 (Steele, Lea and Flood 2014) for each state of an array, modulo 2^64."""
    z = np.asarray(state, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def substream(seed, number):
    """The seed of a stream of numbers of its own that belongs to `seed`."""
    return int(mix(mix([seed + 1]) ^ mix([2**32 + number]))[0]) >> 1  # twice mixed: 1 ^ 2 and 2 ^ 1 must not meet


def random_scenes(seed, items, scenes="both"):
    """The Geometry of these item numbers; always the same for the same seed. `scenes` "one", "two" or "both"."""
    u = uniforms(seed, items, 16)
    count = {"one": np.ones(len(u), int), "two": np.full(len(u), 2), "both": 1 + (u[:, 0] < 0.5)}[scenes]
    shape, colour = (u[:, 1:3] * len(SHAPES)).astype(int), (u[:, 3:5] * len(COLOURS)).astype(int)
    large = u[:, 5:7] < 0.5
    low, high = np.moveaxis(np.where(large[..., None], SIZES["large"], SIZES["small"]), -1, 0)
    width = low + (high - low) * u[:, 7:9]
    # One object: anywhere. Two: the first one's side of the axis is drawn, then both places along it; across, they
    # are nearly level, so that 'left of' is never also 'above'.
    place = 0.5 * width + (1 - width) * u[:, 9:11]
    single = np.stack([place[:, 0], 0.5 * width[:, 0] + (1 - width[:, 0]) * u[:, 11]])  # (2, B): x, y
    slack = 1 - GAP - width.sum(1)  # what is left along the axis
    cut = np.sort(u[:, 9:11], axis=1) * slack[:, None]
    relation = (u[:, 12] * 4).astype(int)  # as in RELATIONS: left of, right of, above, below
    first = np.isin(relation, (0, 2))  # the first object comes first along the axis
    begin = np.where(first[:, None], width[:, :1], width[:, 1:])
    near = cut[:, 0] + 0.5 * begin[:, 0]
    far = cut[:, 1] + begin[:, 0] + GAP + 0.5 * (width.sum(1) - begin[:, 0])
    along = np.where(first[:, None], np.stack([near, far], 1), np.stack([far, near], 1))
    middle = 0.5 * width.max(1) + (1 - width.max(1)) * u[:, 13]
    across = middle[:, None] + 0.06 * (2 * u[:, 14:16] - 1)
    across = np.clip(across, 0.5 * width, 1 - 0.5 * width)
    sideways, two = (relation < 2)[:, None], (count == 2)[:, None]
    x = np.where(two, np.where(sideways, along, across), single[0][:, None])
    y = np.where(two, np.where(sideways, across, along), single[1][:, None])
    return Geometry(count, shape, colour, large, x, y, width, np.where(count == 2, relation, -1))


def holds(geometry, pairs):
    """(B,) bool: whether a scene shows one of the pairs, (colour, shape) or (relation, shape).

    A relation counts as the picture shows it: with ("left of", "cross") a cross stands left of something, in 'a cross
    left of a circle' as in 'a circle right of a cross'.
    """
    colours, relations = list(COLOURS), list(RELATIONS)
    there = np.arange(2) < geometry.count[:, None]  # (B, 2)
    converse = np.array([relations.index(RELATIONS[name]) for name in relations])
    place = np.stack([geometry.relation, converse[geometry.relation]], 1)  # of each object to the other
    found = np.zeros(len(geometry.count), dtype=bool)
    for first, shape in pairs:
        is_shape = there & (geometry.shape == SHAPES.index(shape))
        if first in COLOURS:
            found |= (is_shape & (geometry.colour == colours.index(first))).any(1)
        else:
            found |= (is_shape & (place == relations.index(first))).any(1) & (geometry.count == 2)
    return found


def chosen_scenes(stream, items, scenes, pairs, only):
    """The Geometry of these items, where each scene shows one of the `pairs` if `only`, and none of them otherwise.

    A scene that does not fit is drawn again from the next stream of its own, so that an item depends on nothing but its
    number; one that fits is what `random_scenes` would have drawn.
    """
    items = np.asarray(items, dtype=np.int64)
    geometry = random_scenes(stream, items, scenes)
    wrong = np.flatnonzero(holds(geometry, pairs) != only)
    for attempt in itertools.count(1):
        if not len(wrong):
            return geometry
        again = random_scenes(substream(stream, attempt), items[wrong], scenes)
        for field, new in zip(geometry, again):
            field[wrong] = new
        wrong = wrong[holds(again, pairs) != only]


def paint(geometry, size):
    """The pictures, float32 (B, 3, size, size) in [-1, 1], anti-aliased on white."""
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 127.5 - 1  # (6, 3)
    cover = coverage(geometry.shape, geometry.x, geometry.y, geometry.width, size)  # (B, 2, size, size)
    cover[:, 1] *= torch.from_numpy(geometry.count == 2)[:, None, None]
    ink = colours[torch.from_numpy(geometry.colour)] - 1  # (B, 2, 3): what is taken from white
    return torch.einsum("bohw,boc->bchw", cover, ink).add_(1.0)


def coverage(shape, x, y, width, size):
    """The share of each pixel that a shape covers, float32 (*batch, size, size), for arrays of any batch shape."""
    shape = torch.from_numpy(np.asarray(shape))[..., None, None]
    x, y, width = (torch.from_numpy(np.asarray(v)).float()[..., None, None] * size for v in (x, y, width))
    half = 0.5 * width
    pixel = torch.arange(size) + 0.5
    dx, dy = pixel - x, pixel[:, None] - y  # (..., 1, W), (..., H, 1), in pixels
    wide, tall = overlap(dx, half), overlap(dy, half)
    thin, flat = overlap(dx, CROSS_ARM * half), overlap(dy, CROSS_ARM * half)
    square, cross = wide * tall, wide * flat + thin * tall - thin * flat
    # Distances to the edge in pixels; within half a pixel of the edge the coverage falls linearly.
    circle = half - torch.sqrt(dx * dx + dy * dy)
    # The triangle: the apex at (0, -half), the base from (-half, half) to (half, half).
    sides = (dy + half - 2 * dx.abs()) / 5**0.5
    triangle = torch.minimum(sides, half - dy)
    soft = torch.where(shape == 2, triangle, circle).add_(0.5).clamp_(0, 1)
    return torch.where(shape == 1, square, torch.where(shape == 3, cross, soft))


def overlap(d, half):
    """The share of the unit interval around d that lies in [-half, half]: exact coverage in one dimension."""
    return (torch.minimum(d + 0.5, half) - torch.maximum(d - 0.5, -half)).clamp_(min=0)


def attributes(geometry):
    """The list of Scenes of a Geometry."""
    colours, sizes, relations = list(COLOURS), list(SIZES), list(RELATIONS)
    scenes = []
    for i, count in enumerate(geometry.count):
        things = tuple(
            Thing(sizes[int(geometry.large[i, j])], colours[geometry.colour[i, j]], SHAPES[geometry.shape[i, j]])
            for j in range(count)
        )
        scenes.append(Scene(things, relations[geometry.relation[i]] if count == 2 else None))
    return scenes


def describe(scene):
    """The caption: 'a small red circle left of a large blue square'; a size of None is left out."""
    words = [" ".join(["a", *filter(None, thing)]) for thing in scene.things]
    return f" {scene.relation} ".join(words)


_THING = f"a(?: ({'|'.join(SIZES)}))? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(f"{_THING}(?: ({'|'.join(RELATIONS)}) {_THING})?")


def parse(caption):
    """The Scene of a caption; a size that is left out is None. ValueError for what `describe` could not have said."""
    found = _CAPTION.fullmatch(caption.strip().lower().rstrip("."))
    if not found:
        raise ValueError(
            f"caption {caption!r} is not of the form 'a small red circle left of a large blue square' with sizes"
            f" {', '.join(SIZES)}, colours {', '.join(COLOURS)}, shapes {', '.join(SHAPES)}, relations"
            f" {', '.join(RELATIONS)}."
        )
    words = found.groups()
    if words[3] is None:
        return Scene((Thing(*words[:3]),))
    return Scene((Thing(*words[:3]), Thing(*words[4:])), words[3])


def canonical(scene):
    """The same scene with the left or upper object first: 'A right of B' becomes 'B left of A'."""
    if scene.relation in ("right of", "below"):
        return Scene(scene.things[::-1], RELATIONS[scene.relation])
    return scene
