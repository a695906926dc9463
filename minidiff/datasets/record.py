"""What every data set gives: `Record(image, label, caption)`, and the set that lies in memory as a whole."""

from typing import NamedTuple

import torch


class Record(NamedTuple):
    """One item. `image` float32 (C, H, W) in [-1, 1] (a point (2,) for the 2-D sets), `label` int, `caption` str."""

    image: torch.Tensor
    label: int
    caption: str


class InMemory(torch.utils.data.Dataset):
    """A finite data set in memory.

    `pictures` is uint8 (N, C, H, W), turned into [-1, 1] on the way out, or float32 of any shape (N, ...), given as it is.
    `labels` is int64 (N,), `captions` a list of N strings, `classes` the list of label names.
    `columns` are further tensors of length N, kept as attributes of those names.
    """

    def __init__(self, pictures, labels, captions, classes, **columns):
        self.pictures, self.captions, self.classes = pictures, list(captions), list(classes)
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        for name, column in columns.items():
            setattr(self, name, column)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return Record(to_float(self.pictures[index]), int(self.labels[index]), self.captions[index])

    def images(self):
        """All images at once, float32 (N, C, H, W) in [-1, 1]."""
        return to_float(self.pictures)


def to_float(pictures):
    """uint8 0..255 to float32 in [-1, 1]; floats pass."""
    if pictures.dtype != torch.uint8:
        return pictures
    return pictures.to(torch.float32).div_(127.5).sub_(1.0)
