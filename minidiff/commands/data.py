"""From what the command line says to a data set, and to an encoder of captions."""

import hashlib
import inspect
from importlib import import_module
from pathlib import Path

import torch

from minidiff.datasets import DATASETS, list_datasets, load_dataset
from minidiff.datasets.record import InMemory
from minidiff.datasets.two_d import NAMES as POINTS
from minidiff.errors import unknown_name
from minidiff.layers import Text
from minidiff.text import ENCODERS, text_encoder

TEXT_SHAPE = (4, 8)  # words and their width, of `random_text`


def load_data(name, *, size, split=None, flip=False, value_range=(-1.0, 1.0), download=False, needs=None, **options):
    """The data set of a name, a folder of pictures, or shards (a folder or pattern of .tar files).

    size: the side of its pictures; flip: mirrored ones, too; value_range: what its values, in [-1, 1], are turned into;
    needs: "labels", "text" or None, what the network is told: shards have a field `label`, and may lack captions.
    Raises ValueError or FileNotFoundError for what is no data set, and whatever the data set itself raises.
    """
    name, options = _named(name, options)
    if name == "shards":
        options = {"need_caption": needs == "text", **({"label": "label"} if needs == "labels" else {}), **options}
    if download and name != "noise" and "download" in inspect.signature(DATASETS[name]).parameters:
        options["download"] = True
    try:
        dataset = noise(size, **options) if name == "noise" else load_dataset(name, size=size, split=split, **options)
    except TypeError as error:  # an argument that the set has not
        raise ValueError(str(error)) from error
    except RuntimeError as error:  # no network
        raise FileNotFoundError(str(error)) from error
    return scaled(mirrored(dataset, name) if flip else dataset, value_range)


def _named(name, options):
    """(the name that load_dataset knows, its options): a path goes there as `path`."""
    if name in POINTS:
        raise ValueError(f"--data {name}: points in the plane are no pictures; take one of emoji, shapes, digits.")
    if name == "noise" or name in list_datasets():
        return name, options
    path = Path(name).expanduser()
    shards = ".tar" in name or "://" in name or (path.is_dir() and any(path.glob("*.tar")))
    if path.is_dir() or shards:
        return "shards" if shards else "folder", {"path": name, **options}
    if "/" in name or path.exists():
        raise FileNotFoundError(f"--data {name}: no such folder of pictures, and no pattern of .tar files.")
    sets = [one for one in list_datasets() if one not in POINTS]
    raise unknown_name("data set", name, [*sets, "FOLDER", "FOLDER/{000..009}.tar"])


def mirrored(dataset, name):
    """The same data set, in which every picture is as often mirrored as not."""
    if hasattr(dataset, "flip"):  # those that read a picture when it is wanted draw lots
        dataset.flip = True
        return dataset
    if not hasattr(dataset, "images"):
        raise ValueError(f"--flip: the pictures of data set {name!r} cannot be mirrored; use --no-flip.")
    pictures = torch.cat([dataset.pictures, dataset.pictures.flip(-1)])
    return InMemory(pictures, dataset.labels.repeat(2), dataset.captions * 2, dataset.classes)


def scaled(dataset, value_range):
    """The same data set with values in another range than [-1, 1]."""
    low, high = value_range
    if (low, high) == (-1.0, 1.0):
        return dataset
    if not hasattr(dataset, "images"):
        raise ValueError(
            f"--value-range {low:g} {high:g}: only a data set in memory is turned into another range than [-1, 1]. For "
            "a folder: --data-options in_memory=true (and --no-flip)."
        )
    pictures = (dataset.images() + 1) * ((high - low) / 2) + low
    return InMemory(pictures, dataset.labels, dataset.captions, dataset.classes)


def first_of(dataset):
    """Its first record."""
    if not getattr(dataset, "stream", None):
        return dataset[0]
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError("the shards hold no sample that can be used; what was wrong with them is said above.")
    return first


class Encoded:
    """Stands for the encoder where a data set has embeddings in place of captions: it knows how wide they are."""

    def __init__(self, text):
        self.dim, self.pooled_dim = text.tokens.shape[-1], 0 if text.pooled is None else text.pooled.shape[-1]

    def __call__(self, captions):
        raise ValueError("some captions of this data set are embeddings, and others are words: cache all of them.")


def load_encoder(name, device=None, download=False):
    """The function from captions to Text; None stays None.

    name: of minidiff.text.text_encoder, also NAME:FOLDER with the folder of its weights, or MODULE:FUNCTION.
    """
    if name is None:
        return None
    module, colon, function = name.partition(":")
    if not colon or module in ENCODERS:
        from minidiff.text_cache import CachedEncoder

        fetch = {"download": True} if download and module not in ("words", "minilm") else {}
        return CachedEncoder(text_encoder(module, folder=function or None, device=device, **fetch))
    found = getattr(import_module(module), function, None)
    if found is None:
        raise ValueError(f"--encoder {name}: module {module} has no {function!r}; it takes a list of captions and "
                         "returns a minidiff.Text.")
    return found


def noise(size, *, channels=3, classes=3, num=16):
    """`num` pictures of nothing, for a smoke test."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(num, channels, size, size, generator=generator) * 2 - 1
    names = [f"class {i}" for i in range(classes)]
    return InMemory(pictures, torch.arange(num) % classes, [f"picture {i}" for i in range(num)], names)


def random_text(captions):
    """An encoder for smoke tests: each caption has its own random numbers, as a Text."""
    seeds = [int.from_bytes(hashlib.sha256(caption.encode()).digest()[:7], "little") for caption in captions]
    tokens = torch.stack([torch.randn(TEXT_SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return Text(tokens, None, tokens.mean(1))
