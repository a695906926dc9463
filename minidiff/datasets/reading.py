"""The oracle of the shapes: reads a picture back into the scene that it shows, or says that it cannot.

Analysis by synthesis: each connected patch of ink is painted again as every shape, and the one that leaves the smallest
difference is what it is. On pictures that `scenes.paint` made this is exact; on pictures that a model made it is a
strict judge, which answers None when the best explanation is a poor one.
"""

import numpy as np
import torch

from minidiff.datasets.scenes import (
    COLOURS,
    CROSS_ARM,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    canonical,
    coverage,
    parse,
)

INK = 0.12  # a pixel with less than this share of ink counts as white
FULL = 0.5  # no scene covers this share of the picture
SPECK = 0.005  # patches smaller than this share of the picture are not objects
BACKGROUND = 0.01  # the largest mean square of ink outside the objects
MISFIT = 0.1  # the largest squared difference in coverage, relative to the object's own
TINT = 0.06  # the largest squared difference in colour, relative to the object's own
WIDTHS = (0.22, 0.46)  # no object is narrower or wider than these shares of the side
MIDDLE = 0.5 * (SIZES["small"][1] + SIZES["large"][0])  # between small and large
_INKS = 1 - (np.array(list(COLOURS.values())) / 127.5 - 1)  # (6, 3): what each colour takes from white
_AREAS = np.array([np.pi / 4, 1.0, 0.5, 2 * CROSS_ARM - CROSS_ARM**2])  # of each shape of width 1
_CENTROID_Y = np.array([0.0, 0.0, 1 / 6, 0.0])  # of each shape of width 1, below the middle of its box
_STRETCH = np.array([0.94, 0.97, 1.0, 1.03, 1.06])


def read(image):
    """The Scene that a picture (3, H, W) in [-1, 1] shows, with the left or upper object first; None if unreadable.

    For a batch (B, 3, H, W) the list of B answers. ValueError for other shapes and pictures under 16 pixels.
    """
    pixels = np.asarray(torch.as_tensor(image).detach().cpu(), dtype=np.float64)
    side = pixels.shape[-1] if pixels.ndim in (3, 4) else 0
    if side < 16 or pixels.shape[-3:] != (3, side, side):
        raise ValueError(
            f"shapes.read: got an array of shape {pixels.shape}, expected (3, S, S) or (B, 3, S, S) with S >= 16 and"
            " values in [-1, 1]."
        )
    return read_one(pixels) if pixels.ndim == 3 else [read_one(picture) for picture in pixels]


def read_one(pixels):
    """`read` of one float64 picture (3, S, S)."""
    if not np.isfinite(pixels).all():
        return None
    size = pixels.shape[-1]
    ink = 1 - pixels.clip(-1, 1)  # (3, S, S), 0 is white
    mask = ink.max(0) / 2 > INK
    found = patches(mask, size) if mask.mean() < FULL else []
    if not found or len(found) > 2:
        return None
    outside, things = np.ones((size, size), bool), []
    for rows, columns in found:
        box = slice(max(rows.min() - 1, 0), rows.max() + 2), slice(max(columns.min() - 1, 0), columns.max() + 2)
        outside[box] = False
        things.append(recognise(ink, box))
    if None in things or np.square(ink[:, outside]).sum() > BACKGROUND * 3 * size**2:
        return None
    if len(things) == 1:
        return Scene((things[0][0],))
    return related(*things)


def patches(mask, size):
    """The connected patches of a mask (S, S), as (rows, columns) of their pixels; specks are left out."""
    left, found = set(np.flatnonzero(mask).tolist()), []
    while left:
        stack = [left.pop()]
        patch = list(stack)
        while stack:
            at = stack.pop()
            row, column = divmod(at, size)
            for r in range(row - 1, row + 2):
                for c in range(column - 1, column + 2):
                    near = r * size + c
                    if 0 <= c < size and near in left:
                        left.remove(near)
                        stack.append(near)
                        patch.append(near)
        if len(patch) > SPECK * size**2:
            found.append(np.divmod(np.array(patch), size))
    return found


def recognise(ink, box):
    """What lies in this box of the picture, as (Thing, x, y); None if nothing that we know."""
    size = ink.shape[-1]
    here = ink[:, box[0], box[1]].reshape(3, -1)  # (3, pixels)
    covers = (_INKS @ here / np.square(_INKS).sum(1, keepdims=True)).clip(0, 1)  # (6, pixels) under each colour
    differences = np.square(here - _INKS[:, :, None] * covers[:, None]).sum((1, 2))
    colour = int(differences.argmin())
    if differences[colour] > TINT * np.square(here).sum():
        return None
    cover = np.zeros((size, size))
    cover[box] = covers[colour].reshape(cover[box].shape)
    area = cover.sum()
    x, y = (cover.sum(0) @ (np.arange(size) + 0.5)) / area, (cover.sum(1) @ (np.arange(size) + 0.5)) / area
    widths = np.sqrt(area / _AREAS)[:, None] * _STRETCH  # (4, 5), in pixels
    middles = y - _CENTROID_Y[:, None] * widths
    shapes = np.arange(len(SHAPES))[:, None].repeat(len(_STRETCH), 1)
    painted = coverage(shapes, np.full_like(widths, x / size), middles / size, widths / size, size).numpy()
    misfits = np.square(painted - cover).sum((2, 3)) / np.square(cover).sum()  # (4, 5)
    shape, stretch = np.unravel_index(misfits.argmin(), misfits.shape)
    width = widths[shape, stretch] / size
    if misfits[shape, stretch] > MISFIT or not WIDTHS[0] < width < WIDTHS[1]:
        return None
    thing = Thing("small" if width < MIDDLE else "large", list(COLOURS)[colour], SHAPES[shape])
    return thing, x, middles[shape, stretch]


def related(first, second):
    """The Scene of two objects (Thing, x, y); None where neither direction clearly leads."""
    dx, dy = second[1] - first[1], second[2] - first[2]
    if max(abs(dx), abs(dy)) < 1.5 * min(abs(dx), abs(dy)):
        return None
    relation = ("left of" if dx > 0 else "right of") if abs(dx) > abs(dy) else ("above" if dy > 0 else "below")
    return canonical(Scene((first[0], second[0]), relation))


def score(images, captions):
    """How well pictures (B, 3, S, S) show their captions: a dict of shares in [0, 1] of the whole batch.

    `readable`; then, where an unreadable picture counts as wrong: `count` of objects, `colour`, `shape`, `size` of all
    of them, `relation` (of the captions with two objects; absent if there are none), and `all` at once.
    """
    if len(images) != len(captions):
        raise ValueError(f"shapes.score: {len(images)} images and {len(captions)} captions; give one for each image.")
    rows = []
    for caption, seen in zip(captions, read(images), strict=True):
        said = canonical(parse(caption))
        row = {"readable": seen is not None}
        row["count"] = row["readable"] and len(seen.things) == len(said.things)
        for name in ("colour", "shape", "size"):
            row[name] = row["count"] and all(
                getattr(a, name) in (None, getattr(b, name)) for a, b in zip(said.things, seen.things, strict=True)
            )
        if said.relation in RELATIONS:
            row["relation"] = row["count"] and seen.relation == said.relation
        row["all"] = all(row.values())
        rows.append(row)
    names = ("readable", "count", "colour", "shape", "size", "relation", "all")
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items() if column}
