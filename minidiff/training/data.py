"""Batches as a pure function of (seed, step): a resumed run sees the pictures an unbroken one would have seen.

Where several processes train, each takes its part of the same whole batch, whatever their number.
"""

import contextlib
import hashlib
import itertools
import random
from functools import lru_cache

import torch

from minidiff.datasets.record import to_float
from minidiff.layers import Text
from minidiff.text import collate_texts, padded

TABLE = 2**28  # numbers: the encoded captions of a data set in memory are kept on the device up to this many


def stream_seed(*parts):
    """A 64-bit seed from numbers and words, the same everywhere: each (seed, purpose, step) has its own stream."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def shuffled(count, batch_size, seed, device="cpu"):
    """Function step -> indices (batch_size,) int64: epochs of `count` items, each shuffled anew, laid end to end.

    A batch may reach from one epoch into the next; every item is seen once an epoch.
    """
    if count < 1:
        raise ValueError("the data set is empty: it needs at least one picture. Look at its folder and its filters.")

    @lru_cache(maxsize=2)
    def epoch(number):
        generator = torch.Generator().manual_seed(stream_seed(seed, "order", number))
        return torch.randperm(count, generator=generator).to(device)

    def indices(step):
        number, offset = divmod(step * batch_size, count)
        parts, missing = [], batch_size
        while missing:
            parts.append(epoch(number)[offset:offset + missing])
            missing -= len(parts[-1])
            number, offset = number + 1, 0
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return indices


def batches(dataset, batch_size, seed, start, world, network, *, workers=0, encode=None, position=None):
    """Iterator over this process's (images (b, C, H, W) float32, y, position) on its device from step `start` on.

    y is None, labels (b,), or what `encode(captions)` gives for a network that takes text: a Text. `batch_size` is that
    of all processes. The data set is one of four kinds:
    - in memory (`dataset.images()`): put on the device once, with its encoded captions; batches are gathered there
    - with a length, giving its records by number: read by a DataLoader with `workers` in the same shuffled order;
      torch's and Python's random numbers in it are seeded for each item
    - with `stream(batch_size, seed, position, rank, world, workers)` (datasets/shards.py): it goes on at `position`,
      which is what came with the last batch, merged over all processes
    - a torch IterableDataset: read by a DataLoader as it comes, by every process in whole; on resumption what was
      already seen is skipped, which needs a repeatable stream
    """
    condition = _Condition(network, encode, world.device)
    missing = {"labels": "labels", "text": "captions", None: "images"}[condition.kind]
    if hasattr(dataset, "images") and not hasattr(dataset, missing):
        raise ValueError(f"the network {type(network).__name__} is conditioned on {missing}, and the data set has "
                         f"none: give it `.{missing}`, one for each picture, or take a network without a condition.")
    if hasattr(dataset, "images"):
        yield from _gathered(dataset, batch_size, seed, start, world, condition)
        return
    if callable(getattr(dataset, "stream", None)):
        stream = dataset.stream(batch_size, seed, position=position, rank=world.rank, world=world.size, workers=workers)
    else:
        stream = ((batch, None) for batch in _loaded(dataset, batch_size, seed, start, world, workers))
    for (images, labels, captions), position in stream:
        images = to_device(images, world.device)
        images = to_float(images) if images.dtype == torch.uint8 else images
        yield images, condition(labels, captions), position


class _Condition:
    """(labels, captions) -> what this network is conditioned on, on the device."""

    def __init__(self, network, encode, device):
        self.device, self.kind = device, None
        if getattr(network, "num_classes", 0):
            self.kind = "labels"
        elif getattr(network, "text_dim", 0):
            self.kind, self.length = "text", getattr(network, "num_text_tokens", None)
        self.encode = encode

    def __call__(self, labels, captions):
        if self.kind == "labels":
            return to_device(labels, self.device)
        if self.kind == "text":
            return self.text(captions)
        return None

    def text(self, captions):
        """Captions, strings or encoded already, as one Text."""
        if isinstance(captions[0], Text):
            text = collate_texts(captions)
        elif self.encode is None:
            raise ValueError("this network takes text and the data set gives words: pass encode=..., a function from a "
                             "list of captions to a minidiff.Text, for example minidiff.text.text_encoder('words').")
        else:
            text = self.encode(list(captions))
        text = Text(*(None if part is None else to_device(part, self.device) for part in text))
        return text if self.length is None else padded(text, self.length)


def to_device(tensor, device):
    """On the device; from the host through page-locked memory, so that nobody waits for the copy."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _gathered(dataset, batch_size, seed, start, world, condition):
    images = torch.as_tensor(dataset.images(), dtype=torch.float32).to(world.device)
    indices = shuffled(len(images), batch_size, seed, world.device)
    conditions = _table(dataset, condition)
    for step in itertools.count(start):
        chosen = world.mine(indices(step))
        yield images[chosen], conditions(chosen), None


def _table(dataset, condition):
    """Function indices -> y of a data set in memory: labels, or the captions encoded once, each different one once."""
    if condition.kind == "labels":
        labels = torch.as_tensor(dataset.labels).to(condition.device)
        return lambda chosen: labels[chosen]
    if condition.kind is None:
        return lambda chosen: None
    captions = list(dataset.captions)
    different = list(dict.fromkeys(captions))
    parts = [condition.text(different[:256])]
    if parts[0].tokens[0].numel() * len(different) > TABLE:
        return lambda chosen: condition.text([captions[index] for index in chosen.tolist()])
    parts += [condition.text(different[at:at + 256]) for at in range(256, len(different), 256)]
    longest = max(part.tokens.shape[1] for part in parts)
    parts = [padded(part, longest) for part in parts]
    text = Text(*(None if column[0] is None else torch.cat(column) for column in zip(*parts)))
    number = {caption: place for place, caption in enumerate(different)}
    rows = torch.tensor([number[caption] for caption in captions], device=condition.device)
    return lambda chosen: text[rows[chosen]]


def _loaded(dataset, batch_size, seed, start, world, workers):
    options = dict(num_workers=workers, collate_fn=_collate, pin_memory=world.device.type == "cuda")
    if isinstance(dataset, torch.utils.data.IterableDataset):
        loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, drop_last=True, **options)
        for whole in itertools.islice(_repeat(loader), start, None):
            yield tuple(world.mine(part) for part in whole)
        return
    order = shuffled(len(dataset), batch_size, seed)
    sampler = (_numbered(world.mine(order(step)), step, world) for step in itertools.count(start))
    yield from torch.utils.data.DataLoader(_Seeded(dataset, seed), batch_sampler=sampler, **options)


def _numbered(indices, step, world):
    """Pairs (index, number of the item since the beginning of the run)."""
    first = (step * world.size + world.rank) * len(indices)
    return [(index, first + place) for place, index in enumerate(indices.tolist())]


class _Seeded(torch.utils.data.Dataset):
    """Records of a data set, with the random numbers of each item seeded by its number in the run: flips are repeated.

    What the data set draws depends neither on the worker that reads it nor on what was read before.
    """

    def __init__(self, dataset, seed):
        self.dataset, self.seed = dataset, seed

    def __getitems__(self, pairs):
        if hasattr(self.dataset, "__getitems__"):  # a set that makes a batch at once draws once for all of it
            with _seeded(stream_seed(self.seed, "item", pairs[0][1])):
                return self.dataset.__getitems__([index for index, _ in pairs])
        return [self[pair] for pair in pairs]

    def __getitem__(self, pair):
        index, number = pair
        with _seeded(stream_seed(self.seed, "item", number)):
            return self.dataset[index]


@contextlib.contextmanager
def _seeded(seed):
    """Inside, torch's and Python's random numbers are those of `seed`; Python's are the caller's again afterwards."""
    torch.manual_seed(seed)
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _repeat(loader):
    while True:
        count = 0
        for count, batch in enumerate(loader, start=1):  # noqa: B007
            yield batch
        if not count:
            raise ValueError("the data set gave no full batch: use a smaller batch_size or more pictures.")


def _collate(records):
    images = torch.stack([torch.as_tensor(record[0], dtype=torch.float32) for record in records])
    captions = [record[2] if len(record) > 2 else "" for record in records]
    return images, torch.as_tensor([int(record[1]) for record in records]), captions
