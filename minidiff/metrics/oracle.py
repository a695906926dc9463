"""The oracle of the shapes as a metric: does a picture show what its caption says, attribute by attribute?

    pictures = pipe(captions, n=1, seed=range(len(captions)), output="tensor")[:, 0]
    print(oracle_accuracy(pictures, captions, groups=held_out_groups(captions)))

What a picture shows is read by `datasets.shapes.score`; here are shares of many pictures, of parts of them, and how
sure they are. How far the oracle itself can be trusted is in `MEASURED`, made again by `damage_table`.
"""

import torch
import torch.nn.functional as F

from minidiff.datasets import shapes
from minidiff.errors import check_whole, unknown_name
from minidiff.metrics.features import check_pictures

# Renders, clean (no noise) and damaged: {side: {(kind, amount): (shares read right, read wrongly, not read at all)}},
# of 1000 scenes each by damage_table(side, num=1000). Noise: its standard deviation, on a range of 2; blur: that of a
# Gaussian, as a share of the side. What is damaged too much is refused. It is taken for another scene under blur alone,
# above all at 16 pixels, and then almost always a circle for a square.
MEASURED = {
    16: {("noise", 0.0): (1.0, 0.0, 0.0), ("noise", 0.05): (1.0, 0.0, 0.0), ("noise", 0.1): (0.735, 0.0, 0.265),
         ("noise", 0.15): (0.004, 0.0, 0.996), ("blur", 0.02): (1.0, 0.0, 0.0), ("blur", 0.03): (0.999, 0.0, 0.001),
         ("blur", 0.04): (0.773, 0.056, 0.171)},
    32: {("noise", 0.0): (1.0, 0.0, 0.0), ("noise", 0.05): (1.0, 0.0, 0.0), ("noise", 0.1): (1.0, 0.0, 0.0),
         ("noise", 0.15): (0.077, 0.0, 0.923), ("blur", 0.02): (1.0, 0.0, 0.0), ("blur", 0.03): (0.812, 0.001, 0.187),
         ("blur", 0.04): (0.269, 0.0, 0.731)},
    64: {("noise", 0.0): (1.0, 0.0, 0.0), ("noise", 0.05): (1.0, 0.0, 0.0), ("noise", 0.1): (1.0, 0.0, 0.0),
         ("noise", 0.15): (0.928, 0.0, 0.072), ("blur", 0.02): (1.0, 0.0, 0.0), ("blur", 0.03): (0.617, 0.0, 0.383),
         ("blur", 0.04): (0.157, 0.0, 0.843)},
}  # fmt: skip


class Share(float):
    """A share of pictures in [0, 1]: a float with `.count`, how many pictures it is of, `.error`, its standard error,
    and `.interval`, the 95 % interval of Wilson (1927), which is no point at 0 and 1.

    The pictures count as independent: draw one for each of many captions, each from a seed of its own.
    """

    def __new__(cls, value, count):
        self = super().__new__(cls, value)
        self.count, self.error = count, (value * (1 - value) / count) ** 0.5
        z2 = 1.96**2 / count
        middle, half = (value + z2 / 2) / (1 + z2), (z2 * (value * (1 - value) + z2 / 4)) ** 0.5 / (1 + z2)
        self.interval = (max(middle - half, 0.0), min(middle + half, 1.0))
        return self

    def __reduce__(self):
        return Share, (float(self), self.count)

    def __str__(self):
        return f"{float(self):.1%} ± {self.error:.1%} ({self.count})"

    __repr__ = __str__


class OracleAccuracy(dict):
    """{attribute: Share} of all pictures; `.groups` {name: {attribute: Share}} of parts of them; prints as a table."""

    def __init__(self, shares, groups):
        super().__init__(shares)
        self.groups = groups

    def __str__(self):
        rows = {"all pictures": self, **self.groups}
        names, width = list(self), max(map(len, rows))
        lines = [" " * width + "".join(f"{name:>15}" for name in ["pictures", *names])]
        for title, row in rows.items():
            cells = [f"{row[name]:.1%} ± {row[name].error:.1%}" if name in row else "-" for name in names]
            lines.append(f"{title:<{width}}{row['all'].count:>15}" + "".join(f"{cell:>15}" for cell in cells))
        return "\n".join(lines)

    __repr__ = __str__


def oracle_accuracy(pictures, captions, groups=None):
    """How many pictures (B, 3, S, S) in [-1, 1], S >= 16, show their captions: an `OracleAccuracy` of `Share`s.

    Its keys are those of `shapes.score`: "readable", "count", "colour", "shape", "size", "relation" (of captions with
    two objects), and "all" at once; an unreadable picture is wrong in everything.
    groups: parts that are counted on their own, {name: (B,) bool, or the numbers of its pictures}, or a list of B
    names; `held_out_groups(captions)` makes those of held-out pairs. A part without pictures is left out.
    Raises ValueError for pictures and captions that do not fit together, captions that `shapes.parse` does not
    understand, and groups of another length.
    """
    check_pictures(pictures)
    check_captions(captions, len(pictures))
    rows = [shapes.score(picture[None], [caption]) for picture, caption in zip(pictures, captions)]
    parts = {name: chosen for name, chosen in _groups(groups, len(rows)).items() if chosen}
    return OracleAccuracy(_shares(rows), {name: _shares([rows[i] for i in own]) for name, own in parts.items()})


def check_captions(captions, count):
    """Raise ValueError unless captions are a list of so many strings."""
    if isinstance(captions, str) or len(captions) != count or not all(isinstance(text, str) for text in captions):
        got = repr(captions) if isinstance(captions, str) or len(captions) == count < 5 else f"{len(captions)} entries"
        raise ValueError(f"captions must be a list of {count} strings, one for each picture, got {got}")


def held_out_groups(captions, pairs="default"):
    """{name: (B,) bool} for `oracle_accuracy`: "seen", "held out" (shows one of the pairs), and each pair by name.

    pairs: as in load_dataset("shapes", held_out=...): (colour or relation, shape), or "default". As there, a relation
    counts as the picture shows it: 'a circle right of a cross' shows ("left of", "cross"). ValueError for other pairs.
    """
    pairs = shapes.HELD_OUT if isinstance(pairs, str) and pairs == "default" else pairs
    valid = [(first, shape) for first in (*shapes.COLOURS, *shapes.RELATIONS) for shape in shapes.SHAPES]
    for pair in pairs:
        if tuple(pair) not in valid:
            raise unknown_name("pair", pair, map(str, valid))
    shown = torch.tensor([_shown(shapes.parse(caption), pairs) for caption in captions]).view(len(captions), -1)
    anything = shown.any(1)
    return {"seen": ~anything, "held out": anything, **{" ".join(p): shown[:, i] for i, p in enumerate(pairs)}}


def _shown(scene, pairs):
    """Whether a Scene shows each of the pairs: a list of bool."""
    places = [scene.relation, shapes.RELATIONS.get(scene.relation)]  # of each thing to the other
    return [
        any(thing.shape == shape and first in (thing.colour, place) for thing, place in zip(scene.things, places))
        for first, shape in pairs
    ]


def _shares(rows):
    """{attribute: Share} of rows {attribute: 0 or 1}, in the order of the attributes."""
    names = max(rows, key=len)
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: Share(sum(column) / len(column), len(column)) for name, column in columns.items()}


def _groups(groups, count):
    """{name: list of picture numbers} of what `oracle_accuracy` takes."""
    if groups is None:
        return {}
    if not isinstance(groups, dict):
        names = list(groups)
        if len(names) != count:
            raise ValueError(f"groups has {len(names)} names for {count} pictures: give one for each, or a dict")
        return {name: [i for i, own in enumerate(names) if own == name] for name in dict.fromkeys(names)}
    found = {}
    for name, chosen in groups.items():
        chosen = torch.as_tensor(chosen)
        chosen = chosen if chosen.numel() else chosen.long()  # an empty list becomes floats
        fits = len(chosen) == count if chosen.dtype == torch.bool else not chosen.numel() or (
            0 <= chosen.min() and chosen.max() < count)
        if chosen.ndim != 1 or chosen.is_floating_point() or not fits:
            raise ValueError(
                f"groups[{name!r}] must be ({count},) bool, or numbers from 0 to {count - 1} of its pictures, got"
                f" {chosen.dtype} {tuple(chosen.shape)}"
            )
        found[name] = (chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen).tolist()
    return found


# --- the oracle itself -----------------------------------------------------------------------------------------------


def damage_table(size, noise=(0.0, 0.05, 0.1, 0.15), blur=(0.02, 0.03, 0.04), num=500, seed=0):
    """How the oracle reads damaged renders: {(kind, amount): (right, wrong, unreadable)}, `Share`s that sum to 1.

    size: of the pictures. noise: standard deviations of Gaussian noise added to pictures in [-1, 1], then clipped.
    blur: standard deviations of a Gaussian, as shares of the side. Of `num` scenes of the test split, seeded.
    """
    check_whole("num", num)
    images, _, captions = shapes.load(size=size, split="test", seed=seed, num=num).batch(range(num))
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    cases = {("noise", amount): (images + amount * drawn).clamp(-1, 1) for amount in noise}
    cases |= {("blur", amount): blurred(images, amount * size) for amount in blur}
    table = {}
    for case, damaged in cases.items():
        result = oracle_accuracy(damaged, captions)
        right, readable = float(result["all"]), float(result["readable"])
        table[case] = tuple(Share(max(value, 0.0), num) for value in (right, readable - right, 1 - readable))
    return table


def blurred(images, deviation):
    """Images (B, C, H, W) under a Gaussian of this standard deviation in pixels; what lies outside is white (1)."""
    if not deviation:
        return images
    reach = max(1, round(4 * deviation))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation).square())
    weights = (weights / weights.sum()).to(images)
    channels = images.shape[1]
    ink = F.conv2d(images - 1, weights.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), padding=(reach, 0), groups=channels)
    return 1 + F.conv2d(ink, weights.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), padding=(0, reach), groups=channels)
