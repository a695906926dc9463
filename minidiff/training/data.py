"""Batches as a pure function of (seed, step): a resumed run sees the pictures an unbroken one would have seen."""

import hashlib
import itertools
from functools import lru_cache

import torch


def stream_seed(*parts):
    """A 64-bit seed from numbers and words, the same everywhere: each (seed, purpose, step) has its own stream."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def shuffled(count, batch_size, seed, device="cpu"):
    """Function step -> indices (batch_size,) int64: epochs of `count` items, each shuffled anew, laid end to end.

    A batch may reach from one epoch into the next; every item is seen once an epoch.
    """

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


def batches(dataset, batch_size, seed, start, device, network, workers=0):
    """Iterator over (images (B, C, H, W) float32, labels (B,) int64) on `device` from step `start` on, for ever.

    A `network` without classes gets None for labels.

    A finite data set in memory (`dataset.images()`) is put on the device once, and batches are gathered there. One that
    has a length and gives its records by number goes through a DataLoader in the same shuffled order. A stream goes
    through a DataLoader as it comes; on resumption what was already seen is skipped, which needs a repeatable stream.
    """
    labelled = bool(getattr(network, "num_classes", 0))
    if hasattr(dataset, "images"):
        yield from _gathered(dataset, batch_size, seed, start, device, labelled)
        return
    options = dict(num_workers=workers, collate_fn=_collate, pin_memory=torch.device(device).type == "cuda")
    if isinstance(dataset, torch.utils.data.IterableDataset):
        loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, drop_last=True, **options)
        stream = itertools.islice(_repeat(loader), start, None)
    else:
        order = shuffled(len(dataset), batch_size, seed)
        sampler = (order(step).tolist() for step in itertools.count(start))
        stream = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, **options)
    for images, labels in stream:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True) if labelled else None


def _gathered(dataset, batch_size, seed, start, device, labelled):
    images = torch.as_tensor(dataset.images(), dtype=torch.float32).to(device)
    labels = torch.as_tensor(dataset.labels).to(device) if labelled else None
    indices = shuffled(len(images), batch_size, seed, device)
    for step in itertools.count(start):
        chosen = indices(step)
        yield images[chosen], labels[chosen] if labelled else None


def _repeat(loader):
    while True:
        count = 0
        for count, batch in enumerate(loader, start=1):  # noqa: B007
            yield batch
        if not count:
            raise ValueError("the data set gave no full batch: use a smaller batch_size or more pictures.")


def _collate(records):
    images = torch.stack([torch.as_tensor(record[0], dtype=torch.float32) for record in records])
    return images, torch.as_tensor([int(record[1]) for record in records])
