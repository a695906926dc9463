"""Emoji: 1911 captioned pictures in two styles, Noto (Google) and Twemoji (Twitter), shipped with the package.

Made by tools/make_emoji.py; origin and licences stand in data/README.md. Stored at 64 pixels on white and made smaller
with a Lanczos filter on loading, because at 16 pixels it keeps the eyes of a face that a box filter blurs.
"""

import csv
import hashlib
from functools import lru_cache

import numpy as np
import torch

from minidiff.datasets.record import InMemory, expect
from minidiff.files import data_folder

SIZES = (16, 32, 64)
STYLES = ("google", "twitter")
SPLITS = ("train", "test", "all")
COLUMNS = 44  # tiles in a row of a sprite sheet
TEST_SHARE = 0.1


def load(*, size=16, split="train", style="both", variants=False, style_in_caption=False):
    """The emoji as an `InMemory` data set; also has `.styles` (N,) int64 (0 google, 1 twitter), `.codes`, `.groups`.

    `size` 16, 32 or 64; `split` "train" (90 %), "test" or "all"; `style` "both", "google" or "twitter".
    `variants=True` adds the skin-tone variants (16 and 32 pixels only). They double the set but put 60 % of it into one
    category, people, so a small model is better trained without. `style_in_caption=True` writes "grinning face, google
    style". Labels are the 10 categories. All pictures of one emoji (styles, skin tones, and other emoji that have the
    very same picture, like the flags of Norway and Bouvet Island) are in the same split, chosen by a hash of the code.
    """
    expect("emoji", "size", size, SIZES)
    expect("emoji", "split", split, SPLITS)
    expect("emoji", "style", style, ("both", *STYLES))
    if variants and size == 64:
        raise ValueError(
            "data set 'emoji': variants=True with size=64, but the skin-tone variants are kept at 32 pixels; take"
            " size=32 or variants=False."
        )
    folder = data_folder() / "emoji"
    rows = table(folder)
    bases = sum(not row["tone"] for row in rows)
    rows = rows if variants else rows[:bases]
    keep = [i for i, row in enumerate(rows) if split == "all" or (split == "test") == in_test(row["group_name"])]
    classes = sorted({row["category"] for row in rows})
    pictures, labels, captions, styles = [], [], [], []
    for number, vendor in enumerate(STYLES):
        if style not in ("both", vendor):
            continue
        tiles = read_sheet(folder / f"{vendor}_64.webp", bases, 64, size)
        if variants:
            tones = read_sheet(folder / f"{vendor}_tones_32.webp", len(rows) - bases, 32, size)
            tiles = np.concatenate([tiles, tones])
        pictures.append(tiles[keep])
        labels += [classes.index(rows[i]["category"]) for i in keep]
        captions += [rows[i]["caption"] + f", {vendor} style" * style_in_caption for i in keep]
        styles += [number] * len(keep)
    pictures = torch.from_numpy(np.concatenate(pictures)).permute(0, 3, 1, 2).contiguous()  # (N, 3, size, size)
    repeat = len(styles) // len(keep)
    return InMemory(
        pictures, labels, captions, classes,
        styles=torch.tensor(styles),
        codes=[rows[i]["code"] for i in keep] * repeat,
        groups=[rows[i]["group_name"] for i in keep] * repeat,
    )  # fmt: skip


def table(folder):
    """The rows of emoji.tsv in the order of the sheets: first the emoji, then the skin-tone variants."""
    with open(folder / "emoji.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in rows:
        row["group_name"] = rows[int(row["group"])]["code"]
    return rows


def in_test(name):
    """Whether a group is held out: a hash of its name, so that it never changes when emoji are added."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < TEST_SHARE


@lru_cache(maxsize=4)  # train and test of both styles
def read_sheet(path, count, stored, size):
    """The first `count` tiles of a sprite sheet, uint8 (count, size, size, 3), resized from `stored` pixels."""
    from PIL import Image

    with Image.open(path) as file:
        sheet = file.convert("RGB")
    corners = [(i % COLUMNS * stored, i // COLUMNS * stored) for i in range(count)]
    tiles = [sheet.crop((x, y, x + stored, y + stored)) for x, y in corners]
    return np.stack([tile.resize((size, size), Image.LANCZOS) if size != stored else tile for tile in tiles])

