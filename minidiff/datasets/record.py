"""What every data set gives: `Record(image, label, caption)`, and the set that lies in memory as a whole."""

from typing import NamedTuple

import torch


class Record(NamedTuple):
    """One item. `image` float32 (C, H, W) in [-1, 1] (a point (2,) for the 2-D sets), `label` int, `caption` str."""

    image: torch.Tensor
    label: int
    caption: str


class InMemory(torch.utils.data.Dataset):
    """A finite data set in memory: `.labels` int64 (N,), `.captions` list of N, `.classes` the list of label names.

    `pictures` is uint8 (N, C, H, W), turned into [-1, 1] on the way out, or float32 of any shape (N, ...), given as it
    is. `extras` are kept as attributes of their names.
    """

    def __init__(self, pictures, labels, captions, classes, **extras):
        self.pictures, self.captions, self.classes = pictures, list(captions), list(classes)
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        if not len(self.pictures) == len(self.labels) == len(self.captions):
            raise ValueError(
                f"{len(self.pictures)} pictures, {len(self.labels)} labels and {len(self.captions)} captions; there"
                " must be one of each for every item."
            )
        for name, value in extras.items():
            setattr(self, name, value)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return Record(to_float(self.pictures[index]), int(self.labels[index]), self.captions[index])

    def images(self):
        """All images at once, float32 (N, C, H, W) in [-1, 1]; a copy."""
        return to_float(self.pictures)


def to_float(pictures):
    """uint8 0..255 to float32 in [-1, 1]; floats are copied."""
    if pictures.dtype != torch.uint8:
        return pictures.clone()
    return pictures.to(torch.float32).div_(127.5).sub_(1.0)


def expect(dataset, argument, value, allowed):
    """Raises ValueError unless `value` is one of the `allowed` ones, and of its type: neither True nor 1.0 is 1."""
    if not any(type(value) is type(one) and value == one for one in allowed):
        valid = ", ".join(map(repr, allowed))
        raise ValueError(f"data set {dataset!r}: {argument}={value!r} is not one of {valid}; take one of those.")


def expect_whole(dataset, argument, value, least, most=None):
    """Raises ValueError unless `value` is an int from `least` to `most`."""
    if type(value) is not int or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"data set {dataset!r}: {argument}={value!r}, expected a whole number {limit}, like {least}.")
