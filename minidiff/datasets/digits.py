"""Digits: 1797 handwritten digits of 8 x 8 grey pixels, shipped; the quickest class-conditional set."""

import numpy as np
import torch

from minidiff.datasets.record import InMemory, expect
from minidiff.files import data_folder

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def load(*, size=8, split="train"):
    """The digits as an `InMemory` set of (1, size, size), size 8 as they are, 16 or 32 enlarged (bicubic).

    White on black. `split` "train" (four of five), "test" (every fifth) or "all". Captions "the digit seven".
    """
    expect("digits", "size", size, (8, 16, 32))
    expect("digits", "split", split, ("train", "test", "all"))
    with np.load(data_folder() / "digits.npz", allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    test = np.arange(len(labels)) % 5 == 4
    keep = {"train": ~test, "test": test, "all": test | ~test}[split]
    pictures = torch.from_numpy(images[keep]).float()[:, None] / 8 - 1  # 0..16 to [-1, 1]
    if size != 8:
        pictures = torch.nn.functional.interpolate(pictures, size=size, mode="bicubic").clamp_(-1, 1)
    labels = labels[keep].tolist()
    return InMemory(pictures, labels, [f"the digit {NAMES[i]}" for i in labels], NAMES)
