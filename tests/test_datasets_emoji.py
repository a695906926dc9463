"""Emoji: what is in the set, the splits, the pictures."""

import hashlib
import subprocess
import sys
import time

import pytest
import torch

from minidiff.datasets import emoji, load_dataset
from minidiff.files import data_folder

CATEGORIES = ["Activities", "Animals & Nature", "Component", "Flags", "Food & Drink", "Objects", "People & Body",
              "Smileys & Emotion", "Symbols", "Travel & Places"]  # fmt: skip


@pytest.fixture(scope="module")
def everything():
    return load_dataset("emoji", size=16, split="all", variants=True)


def find(data, caption, style=0):
    return next(i for i, c in enumerate(data.captions) if c == caption and data.styles[i] == style)


def test_counts(everything):
    assert len(everything) == 2 * (1911 + 1875) and everything.classes == CATEGORIES
    base = load_dataset("emoji", split="all")
    assert len(base) == 2 * 1911 and base.styles.bincount().tolist() == [1911, 1911]
    assert torch.bincount(base.labels).tolist() == [2 * n for n in (85, 159, 5, 270, 131, 264, 386, 169, 224, 218)]
    assert len(load_dataset("emoji", split="all", style="twitter")) == 1911
    train, test = (load_dataset("emoji", split=split) for split in ("train", "test"))
    assert len(train) + len(test) == len(base) and 0.08 < len(test) / len(base) < 0.12


@pytest.mark.parametrize("variants", [False, True])
def test_no_emoji_is_in_both_splits(variants):
    train, test = (load_dataset("emoji", split=split, variants=variants) for split in ("train", "test"))
    assert not set(train.groups) & set(test.groups)
    assert not {code.split("-")[0] + c for code, c in zip(train.codes, train.captions)} & {
        code.split("-")[0] + c for code, c in zip(test.codes, test.captions)
    }
    # A skin-tone variant is in the split of its emoji, and both styles of each are together.
    bases = [{c.split(", light")[0].split(", medium")[0].split(", dark")[0] for c in d.captions} for d in (train, test)]
    assert not bases[0] & bases[1]
    for data in (train, test):
        google, twitter = (sorted(c for c, s in zip(data.codes, data.styles) if s == style) for style in (0, 1))
        assert google == twitter


def test_no_picture_is_in_both_splits():
    """Emoji with the very same picture, like the flags of Norway and Bouvet Island, are on one side."""
    train, test = (load_dataset("emoji", size=64, split=split) for split in ("train", "test"))
    digests = [{hashlib.sha256(p.numpy().tobytes()).digest() for p in data.pictures} for data in (train, test)]
    assert not digests[0] & digests[1]


def test_split_never_changes():
    test = load_dataset("emoji", split="test", style="google")
    assert len(test) == 186 and test.captions[:3] == [
        "face with stuck-out tongue and winking eye", "thinking face", "sleepy face",
    ]  # fmt: skip


def test_pictures_are_what_captions_say(everything):
    def middle(caption, style=0):
        return everything[find(everything, caption, style)].image[:, 5:11, 5:11].mean((1, 2))

    for style in (0, 1):
        red, green, blue = middle("red heart", style)
        assert red > 0.3 and green < 0 and blue < 0
        red, green, blue = middle("large blue circle", style)
        assert blue > 0.3 and red < 0
        red, green, blue = middle("large green square", style)
        assert green > 0.2 and blue < 0.2 and green > red
        light, dark = (middle(f"raised hand, {tone} skin tone", style).mean() for tone in ("light", "dark"))
        assert light > dark + 0.5
    assert everything[find(everything, "flag of Japan")].label == CATEGORIES.index("Flags")
    assert everything[find(everything, "slice of pizza")].label == CATEGORIES.index("Food & Drink")


@pytest.mark.parametrize("size", [16, 32, 64])
def test_white_background(size):
    images = load_dataset("emoji", size=size, split="all").images()
    assert images.shape[1:] == (3, size, size) and images.min() == -1 and images.max() == 1
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]  # (N, 3, 4)
    assert (corners.amin(1) > 0.9).float().mean() > 0.8  # the rest are square emoji and cityscapes
    assert corners.std(1).mean() < 0.05
    assert 0.05 < images.mean() < 0.6


def test_sizes_show_the_same_pictures():
    small, large = (load_dataset("emoji", size=size, split="test").images() for size in (16, 64))
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.03


def test_variants_fit_their_emoji(everything):
    base, tone = find(everything, "waving hand sign"), find(everything, "waving hand sign, dark skin tone")
    outlines = [everything[i].image.mean(0) < 0.8 for i in (base, tone)]
    assert (outlines[0] == outlines[1]).float().mean() > 0.9


def test_captions(everything):
    assert find(everything, "grinning face") == 0
    assert all(c == c.strip() and c and "\t" not in c and not c.isupper() for c in everything.captions)
    assert all(len(c) < 100 for c in everything.captions)
    said = load_dataset("emoji", split="all", style_in_caption=True)
    assert said[0].caption == "grinning face, google style" and said[1911].caption == "grinning face, twitter style"
    assert len(set(said.captions)) == len(said)


def test_quick_to_load():
    best = 9.0
    for _ in range(3):
        emoji.read_sheet.cache_clear()
        begin = time.process_time()
        load_dataset("emoji", size=16)
        best = min(best, time.process_time() - begin)
    assert best < 1.0


def test_small_on_disk():
    assert sum(file.stat().st_size for file in (data_folder() / "emoji").iterdir()) < 12e6


def test_importing_datasets_leaves_heavy_packages_out():
    heavy = ("PIL", "torchvision", "sklearn", "matplotlib")
    code = f"import sys, minidiff.datasets; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
