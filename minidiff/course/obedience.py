"""Does a picture show what was asked? Figures and words for notebook 18, about what the oracle of the shapes reads.

    answers(pictures, captions)               # pictures, with what was asked of each and what the oracle read
    shares({"never seen": accuracy})          # shares right of each attribute, with their 95 % intervals
    miss(caption, shapes.read(picture))       # what is wrong, in a word or two: "colours exchanged"
    changed(caption, "colour")                # the caption with another colour; "order": the two colours exchanged
    renders(caption, 1000)                    # pictures of a caption, at all places that it allows
    during(runs), compared(runs)              # recorded runs as they went on, and a table of how they ended
    trade_off(right, variety)                 # what a guidance scale gives and takes
"""

import numpy as np
import torch

from minidiff.course.style import COLORS, GREY, quiet
from minidiff.datasets.scenes import Geometry, paint, random_scenes
from minidiff.datasets.shapes import COLOURS, RELATIONS, SHAPES, SIZES, canonical, describe, parse, read
from minidiff.errors import unknown_name
from minidiff.images import pixels

RIGHT, WRONG, FRAME = "#007A5A", "#B84300", "#C8C8C8"


def miss(caption, seen):
    """What is wrong with a picture that shows `seen`, a Scene or None, and should show its caption; "" if nothing is.

    "unreadable"; "count"; "places exchanged", where each thing has its colour and shape and stands where the other
    should; "colours exchanged" or "shapes exchanged", where the other is right, all whatever the sizes; "sizes
    exchanged"; else the one that is wrong of "colour", "shape", "size", "relation", or "several".
    """
    asked = canonical(parse(caption))
    if seen is None:
        return "unreadable"
    if len(seen.things) != len(asked.things):
        return "count"
    names = ("colour", "shape", "size")
    wrong = [name for name in names if not _fits(asked.things, seen.things, name)]
    exchanged = [name for name in names if _fits(asked.things, seen.things[::-1], name)]
    if seen.relation != asked.relation:
        return "several" if wrong else "relation"
    told = [name for name in wrong if name != "size"]
    if told and set(told) <= set(exchanged):
        return "places exchanged" if {"colour", "shape"} <= set(exchanged) else f"{told[0]}s exchanged"
    if len(wrong) == 1:
        return "sizes exchanged" if wrong == ["size"] and "size" in exchanged else wrong[0]
    return "several" if wrong else ""


def _fits(asked, seen, name):
    """Whether each thing has the colour, shape or size that is asked for; an unsaid size fits all."""
    return all(getattr(a, name) in (None, getattr(b, name)) for a, b in zip(asked, seen, strict=True))


def changed(caption, name):
    """The caption with another "colour", "shape" or "size" of its first thing, or with the converse "relation".

    By "order" the colours of its two things are exchanged: the same words in another order. What a caption leaves out
    cannot be changed: ValueError.
    """
    scene = parse(caption)
    words = {"colour": list(COLOURS), "shape": list(SHAPES), "size": list(SIZES)}
    if name not in (known := [*words, "relation", "order"]):
        raise unknown_name("attribute", name, known)
    thing = scene.things[0]
    old = scene.relation if name in ("relation", "order") else getattr(thing, name)
    if old is None:
        raise ValueError(f"{caption!r} says no {name} that could be changed.")
    if name == "relation":
        return describe(scene._replace(relation=RELATIONS[old]))
    if name == "order":
        colours = (scene.things[1].colour, thing.colour)
        return describe(scene._replace(things=tuple(t._replace(colour=c) for t, c in zip(scene.things, colours))))
    other = words[name][(words[name].index(old) + 1) % len(words[name])]
    return describe(scene._replace(things=(thing._replace(**{name: other}), *scene.things[1:])))


def renders(caption, count, size=16, seed=0):
    """`count` pictures (count, 3, size, size) of a caption: its things at all places, in all sizes that it allows.

    For a seed, captions that differ in nothing but colours and shapes have their things at the same places.
    """
    scene = parse(caption)
    geometry = random_scenes(seed, np.arange(20 * count + 1000), "two" if scene.relation else "one")
    fits = geometry.relation == (list(RELATIONS).index(scene.relation) if scene.relation else -1)
    for k, thing in enumerate(scene.things):
        fits &= (thing.size is None) | (geometry.large[:, k] == (thing.size == "large"))
    geometry = Geometry(*[field[np.flatnonzero(fits)[:count]] for field in geometry])
    for k, thing in enumerate(scene.things):
        geometry.shape[:, k], geometry.colour[:, k] = list(SHAPES).index(thing.shape), list(COLOURS).index(thing.colour)
    return paint(geometry, size)


def framed(pictures):
    """Pictures (..., C, H, W) with a pale line around, (..., C, H + 2, W + 2): white ones merge on a white page."""
    return torch.nn.functional.pad(pictures, (1, 1, 1, 1), value=0.75)


@quiet
def answers(pictures, captions, columns=6):
    """Pictures (B, 3, S, S) in [-1, 1], with what was asked of each and below it what the oracle reads.

    What it reads is green where the picture shows its caption, and told in the order of the caption. Raises ValueError
    for another number of captions.
    """
    import matplotlib.pyplot as plt

    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures and {len(captions)} captions: give one for each picture.")
    rows = -(-len(captions) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(1.62 * columns, 2.42 * rows), squeeze=False)
    for axes in panels.flat[len(captions):]:
        axes.axis("off")
    for axes, cell, caption, seen in zip(panels.flat, pixels(pictures), captions, read(torch.as_tensor(pictures))):
        axes.imshow(cell, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set(visible=True, color=FRAME)  # the pictures are white, as the page is
        axes.set_title(_lines(caption), fontsize=8, linespacing=1.1)
        found = "unreadable" if seen is None else _lines(describe(as_asked(seen, parse(caption))))
        axes.text(0.5, -0.04, found, fontsize=8, linespacing=1.1, ha="center", va="top", transform=axes.transAxes,
                  color=WRONG if miss(caption, seen) else RIGHT)  # fmt: skip
    return figure


def as_asked(seen, asked):
    """The Scene that was read, told from the same side as the Scene that was asked for."""
    if seen.relation and asked.relation in ("right of", "below"):
        return seen._replace(things=seen.things[::-1], relation=RELATIONS[seen.relation])
    return seen


def _lines(caption):
    """A caption in at most three lines, without its articles."""
    text = " ".join(word for word in caption.split() if word != "a")
    for relation in RELATIONS:
        text = text.replace(f" {relation} ", f"\n{relation}\n")
    return text


@quiet
def shares(groups, names=None, marks=None):
    """Shares right with their 95 % intervals, a bar for each attribute of each group.

    groups: {group: {attribute: Share}}, as `oracle_accuracy` returns them; a group may lack attributes. names: which
    attributes, in this order; by default those of the first group. marks: {attribute: share}, a line across its bars,
    as for chance. Raises ValueError where no group has an attribute.
    """
    import matplotlib.pyplot as plt

    names = list(next(iter(groups.values()))) if names is None else list(names)
    for name in names:
        if not any(name in group for group in groups.values()):
            raise unknown_name("attribute", name, {key for group in groups.values() for key in group})
    figure, axes = plt.subplots(figsize=(7.4, 0.8 + (0.16 + 0.2 * len(groups)) * len(names)))
    high = 0.8 / len(groups)
    for k, (group, found) in enumerate(groups.items()):
        offset = high * (k - (len(groups) - 1) / 2)
        own = [(row + offset, found[name]) for row, name in enumerate(names) if name in found]
        where, values = zip(*own)
        ends = torch.tensor([[value - value.interval[0], value.interval[1] - value] for value in values]).T.clamp(min=0)
        look = dict(color=COLORS[k % len(COLORS)], alpha=0.75, error_kw={"ecolor": "#333333", "elinewidth": 1})
        axes.barh(where, [float(value) for value in values], high * 0.9, xerr=ends.tolist(), label=group, **look)
        for at, value in own:
            axes.text(value.interval[1] + 0.012, at, f"{float(value):.0%}", va="center", fontsize=8.5)
    for row, name in enumerate(names):
        if marks and name in marks:
            axes.vlines(marks[name], row - 0.42, row + 0.42, color=GREY, linestyle="--", linewidth=1.4)
    axes.set(yticks=range(len(names)), xlim=(0, 1.1), xticks=[0, 0.25, 0.5, 0.75, 1], xlabel="share right")
    axes.set_yticklabels(names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    if len(groups) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@quiet
def during(runs, what="all"):
    """Recorded runs of tools/text_runs.py as they went on: what the oracle read over steps and over work, and the loss.

    runs: {name: record}. Work is three forward passes a step and picture, in operations of summary().flops.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, panels = plt.subplots(1, 3, figsize=(10.2, 3.2))
    for name, record in runs.items():
        steps, curve = record["training"]["steps"], record["curve"]
        asked, right = record["during"]["step"], record["during"][what]
        panels[0].plot(asked, right, "o-", label=name)
        panels[1].plot([work(record, step) / 1e12 for step in asked], right, "o-")
        panels[2].plot([work(record, steps * (k + 1) / len(curve)) / 1e12 for k in range(len(curve))], curve)
    for axes, y in zip(panels, (f"share right: {what}", f"share right: {what}", "training loss")):
        axes.set(xlabel="step" if axes is panels[0] else "work, in $10^{12}$ operations", ylabel=y)
    for axes in panels[:2]:
        axes.set_ylim(0, max(0.05, axes.get_ylim()[1]))  # zeros lie on the ground, not in the middle
    panels[2].set_yscale("log")
    panels[2].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[2].yaxis.set_major_formatter("{x:g}")
    panels[2].yaxis.set_minor_formatter(NullFormatter())
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=max(len(runs), 1))
    return figure


def compared(runs):
    """A table in Markdown of recorded runs of tools/text_runs.py: what each costs, and how well it obeys.

    Worth is by how much the loss grows, in thousandths: without any words, and with two colours exchanged.
    """
    read_back = ("colour", "shape", "relation", "all")
    heads = ["network", "weights", "MFLOPs", "loss", "worth of all words", "of whose colour", *read_back]
    rows = [[*heads, "all, never seen"], ["---", *["---:"] * len(heads)]]
    for name, record in runs.items():
        size, gain, right = record["model"], record["worth"], record["accuracy"]
        worth = [f"{1e3 * gain[key]['mean']:.1f} ± {1e3 * gain[key]['error']:.1f}" if key in gain else "-"
                 for key in ("all", "order")]  # fmt: skip
        shares = [f"{right['seen'].get(key, 0):.1%}" for key in read_back] + [f"{right['held_out']['all']:.1%}"]
        loss = f"{gain['right']['mean']:.4f}"
        cost = [f"{size['parameters']:,}", f"{size['flops'] / 1e6:.0f}"]
        rows.append([name, *cost, loss, *worth, *shares])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def work(record, step):
    """The operations that a recorded run had spent after so many steps: a backward pass costs two forward ones."""
    return 3 * record["model"]["flops"] * record["training"]["batch_size"] * step


@quiet
def trade_off(right, variety):
    """Share right and variety over the guidance scale: {scale: Share} and {scale: float}, which is 1 for the data."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.2, 3.2))
    low, high = zip(*[share.interval for share in right.values()])
    axes.fill_between(list(right), low, high, alpha=0.15, linewidth=0)
    axes.plot(list(right), list(right.values()), "o-", label="right in all, with 95 % interval")
    axes.plot(list(variety), list(variety.values()), "s--", label="variety, 1 as in the data")
    axes.set(xlabel="guidance scale", ylim=(0, None))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure
