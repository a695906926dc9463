"""Data sets. All give `Record(image, label, caption)` with images in [-1, 1]."""

from ..errors import unknown_name
from .emoji import emoji
from .record import InMemory, Record

DATASETS = {"emoji": emoji}


def load_dataset(name, **arguments):
    """The data set of this name; `list_datasets()` has the names."""
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name](**arguments)


def list_datasets():
    """The names that `load_dataset` knows."""
    return sorted(DATASETS)
