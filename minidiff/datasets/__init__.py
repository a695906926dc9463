"""Data sets. All give `Record(image, label, caption)` with images float32 in [-1, 1].

| name | what | sizes |
|---|---|---|
| `emoji` | 1911 captioned emoji in two styles, 10 categories; shipped | 16, 32, 64 |
| `shapes` | endless captioned scenes, with an oracle that reads pictures back (`datasets.shapes.read`) | from 16 |
| `digits` | 1797 handwritten digits; shipped | 8, 16, 32 |
| `moons` `rings` `spirals` `checkerboard` `eight_gaussians` `gaussian_grid` `mixture` | points in the plane | |
| `folder` | your own pictures: `path=...` | any |
| `huggingface` | a Hugging Face data set: `path=` its name, a folder, or the loaded set | any |
| `shards` | captioned pictures or cached latents in tars, streamed: `path=...` | any |
| `fashion_mnist` `cifar10` `celeba` `lsun_church` `lsun_bedroom` `cub` `flowers` | fetched once, on request | from 8 |
"""

import inspect
from functools import partial

from minidiff.datasets import digits, downloads, emoji, folder, huggingface, shapes, shards
from minidiff.datasets.mixture import GaussianMixture
from minidiff.datasets.record import InMemory, Record
from minidiff.datasets.shard_writer import cache_shards, write_shards
from minidiff.datasets.two_d import NAMES as _TWO_D
from minidiff.datasets.two_d import two_d
from minidiff.errors import unknown_name

__all__ = ["DATASETS", "GaussianMixture", "InMemory", "Record", "cache_shards", "digits", "emoji", "folder",
           "list_datasets", "load_dataset", "shapes", "shards", "two_d", "write_shards"]  # fmt: skip

DATASETS = {
    "emoji": emoji.load,
    "shapes": shapes.load,
    "digits": digits.load,
    "folder": folder.load,
    "huggingface": huggingface.load,
    "shards": shards.load,
    **{name: partial(two_d, name) for name in _TWO_D},
    "fashion_mnist": downloads.fashion_mnist,
    "cifar10": downloads.cifar10,
    "celeba": downloads.celeba,
    "lsun_church": partial(downloads.lsun, "church_outdoor"),
    "lsun_bedroom": partial(downloads.lsun, "bedroom"),
    "cub": downloads.cub,
    "flowers": downloads.flowers,
}


def load_dataset(name, *, size=None, split=None, **arguments):
    """The data set of this name, a torch Dataset of `Record`s; `list_datasets()` has the names.

    `size` is the side of its pictures in pixels and `split` mostly "train" or "test"; None is the set's own choice.
    `arguments` are those of the set's function: `help(minidiff.datasets.DATASETS["emoji"])`. Finite sets in memory
    have `.images()` (N, C, H, W); all but `shapes` have `.labels` (N,) and `.captions`; all have `.classes`.
    ValueError for an unknown name or a wrong size or split, TypeError for an argument that the set does not have.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    load = DATASETS[name]
    arguments |= {key: value for key, value in {"size": size, "split": split}.items() if value is not None}
    known = [key for key in inspect.signature(load).parameters if key != "name"]
    for key, value in arguments.items():
        if key not in known:
            takes = ", ".join(known)
            raise TypeError(f"data set {name!r}: {key}={value!r}, but it has no such argument; it takes {takes}.")
    return load(**arguments)


def list_datasets():
    """The names that `load_dataset` knows."""
    return sorted(DATASETS)
