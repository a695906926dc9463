"""The stream over shards: lanes, their positions, and the workers that read parts of them."""

import hashlib
import itertools
import math
import warnings
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from minidiff.datasets.scenes import uniforms
from minidiff.datasets.shard_reading import Skip
from minidiff.layers import Text

MOST_LANES = 64
DRY = 32  # shards without a usable sample that a lane puts up with, if there are as many
WHOLE_SHARDS = ("unreadable shard", "truncated shard", "empty shard")


def begin(paths, lanes, batch_size, seed, position, world):
    """The whole position to begin at, checked: of all lanes, also those of other ranks."""
    names = hashlib.sha256("\n".join(map(_name, paths)).encode()).hexdigest()[:16]
    ours = {"shards": len(paths), "names": names, "seed": seed}
    lanes = position.get("lanes") if position else lanes or _lanes(batch_size, len(paths))
    fitting = [n for n in range(1, min(batch_size, len(paths)) + 1) if batch_size % n == 0 and n % world == 0]
    if lanes not in fitting:
        out = (f"Give lanes={fitting[-1]} to load_dataset, from the first step on." if fitting else
               "Use fewer processes, a batch_size that their number divides, or more and smaller shards.")  # fmt: skip
        raise ValueError(
            f"data set 'shards': {lanes} lanes for batch_size={batch_size} on {world} processes and"
            f" {len(paths)} shards; the lanes must divide batch_size, be a multiple of the processes and no"
            f" more than the shards. {'The run that is resumed had them. ' * bool(position)}{out}"
        )
    if not position:
        return {"lanes": lanes, **ours, **{lane_name(n): Lane.FRESH for n in range(lanes)}}
    theirs = {name: position.get(name) for name in ours}
    if theirs != ours or any(lane_name(n) not in position for n in range(lanes)):
        raise ValueError(f"data set 'shards': the position is not one of this stream: it has {theirs}, now {ours}"
                         " (names: a sum over the file names). Give the same shards and seed, and the positions of"
                         f" all ranks joined, which hold {lanes} lanes; or start without a position.")  # fmt: skip
    return position


def batches(shards, states, fixed, share, workers):
    """The endless iterator of `Shards.stream`: `share` samples from each lane, which `fixed` and `states` place."""
    names = list(states)
    count = max(n for n in range(1, max(workers, 1) + 1) if len(names) % n == 0)
    chunks = Chunks(shards, fixed["seed"], fixed["lanes"], states, share, count)
    if workers:
        chunks = torch.utils.data.DataLoader(chunks, batch_size=None, num_workers=count, collate_fn=_as_it_is)
    chunks, warned = iter(chunks), set()
    while True:
        parts = list(itertools.islice(chunks, count))  # those of the workers, in turn
        for problem, message in itertools.chain.from_iterable(part.problems.items() for part in parts):
            if problem not in warned:
                warnings.warn(f"data set 'shards': {message}. Later ones are only counted.", stacklevel=2)
                warned.add(problem)
        images = parts[0].images if count == 1 else torch.cat([part.images for part in parts])
        labels = torch.tensor([label for part in parts for label in part.labels])
        captions = [text_of(caption) for part in parts for caption in part.captions]
        states = [state for part in parts for state in part.states]
        yield (images, labels, captions), fixed | dict(zip(names, states, strict=True))


class Chunk(NamedTuple):
    """What one worker gives of a batch, and where its lanes are afterwards."""

    images: torch.Tensor
    labels: list
    captions: list
    states: list
    problems: dict


class Chunks(torch.utils.data.IterableDataset):
    """The endless chunks of some lanes, as one of `count` DataLoader workers, or alone."""

    def __init__(self, shards, seed, lanes, states, share, count):
        self.arguments, self.states, self.share, self.count = (shards, seed, lanes), states, share, count

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        names = list(self.states)
        if worker:
            part = len(names) // self.count
            names = names[worker.id * part:(worker.id + 1) * part]
        lanes = [Lane(*self.arguments, int(name.split()[1]), self.states[name]) for name in names]
        while True:
            samples = [lane.next() for lane in lanes for _ in range(self.share)]
            problems = {}
            for lane in lanes:
                problems |= lane.problems
                lane.problems = {}
            yield Chunk(stacked([sample.image for sample in samples]), [sample.label for sample in samples],
                        [sample.caption for sample in samples], [lane.state() for lane in lanes], problems)  # fmt: skip


class Lane:
    """One sequence of samples through all epochs, and where it is."""

    FRESH = {"epoch": 0, "shard": 0, "offset": 0, "read": 0, "skipped": {}}

    def __init__(self, shards, seed, lanes, number, state):
        self.shards, self.seed, self.lanes, self.number = shards, seed, lanes, number
        self.epoch, self.shard, self.offset, self.read = (state[name] for name in ("epoch", "shard", "offset", "read"))
        self.skipped, self.tar, self.problems = dict(state["skipped"]), None, {}
        self.dry = []  # the shards that were read from the start since the last usable sample

    def state(self):
        return {"epoch": self.epoch, "shard": self.shard, "offset": self.offset, "read": self.read,
                "skipped": dict(self.skipped)}  # fmt: skip

    def next(self):
        """The next usable Sample. ValueError if no shard seems to have one."""
        while True:
            if self.tar is None:
                self._open()
            while self.tar and self.offset < len(self.order):
                item = int(self.order[self.offset])
                self.offset += 1
                try:
                    sample = self.shards.decode(self.tar.read(item), self.flips[item])
                except Skip as reason:
                    self._count(str(reason))
                    continue
                self.read += 1
                self.dry.clear()
                return sample
            self._close()

    def _open(self):
        count = len(self.shards.paths)
        mine = order_of_shards(self.seed, self.epoch, count)[self.number::self.lanes]
        if self.shard == len(mine):
            self.epoch, self.shard = self.epoch + 1, 0
            return self._open()
        number = int(mine[self.shard])
        self.tar, problems = self.shards.opened(number)
        if self.offset == 0:  # else they were counted before
            self.problems |= problems
            for problem in problems:
                self._count(problem)
            self.dry.append(number)
        drawn = uniforms(_seed(self.seed, self.epoch, _name(self.shards.paths[number])), range(len(self.tar or ())), 2)
        self.order = np.argsort(drawn[:, 0], kind="stable")
        self.flips = drawn[:, 1] < (0.5 if self.shards.flip else 0.0)

    def _close(self):
        if self.tar:
            self.tar.close()
        self.tar, self.shard, self.offset = None, self.shard + 1, 0
        count = len(self.shards.paths)
        if len(set(self.dry)) == count or len(self.dry) >= max(DRY, math.ceil(count / self.lanes)):
            raise ValueError(f"data set 'shards': no usable sample in {len(self.dry)} shards in a row, the last of them"
                             f" {self.shards.paths[self.dry[-1]]}. So far, {told(self.read, self.skipped)} Mend the"
                             " path, or ask less of the samples (keep, min_side, max_aspect, need_caption).")

    def _count(self, reason):
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


def stacked(images):
    """The arrays as one tensor; ValueError if they differ in shape, as latents of several sizes do."""
    if len({(image.shape, image.dtype) for image in images}) > 1:
        shapes = ", ".join(sorted({f"{image.shape} {image.dtype}" for image in images}))
        raise ValueError(f"data set 'shards': samples of several kinds in one batch: {shapes}. Pictures and latents, or"
                         " latents of different sizes, cannot be mixed: put them into folders of their own.")
    return torch.from_numpy(np.stack(images))


def told(read, counts):
    """'1,000 samples read, 3 skipped (2 broken picture, 1 no caption), 1 truncated shard.'"""
    samples = {reason: count for reason, count in sorted(counts.items()) if reason not in WHOLE_SHARDS}
    why = ", ".join(f"{count:,} {reason}" for reason, count in samples.items())
    line = f"{read:,} samples read, {sum(samples.values()):,} skipped{f' ({why})' * bool(why)}"
    return ", ".join([line, *(f"{counts[name]:,} {name}" for name in WHOLE_SHARDS if name in counts)]) + "."


@lru_cache(maxsize=4)
def order_of_shards(seed, epoch, count):
    """The shuffled numbers of the shards of an epoch; the same in all versions of numpy and torch."""
    return np.argsort(uniforms(_seed(seed, epoch), range(count), 1)[:, 0], kind="stable")


def _seed(*parts):
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "little")


def _lanes(batch_size, shards):
    return max(n for n in range(1, min(batch_size, shards, MOST_LANES) + 1) if batch_size % n == 0)


def lane_name(number):
    return f"lane {number}"


def _name(path):
    """The file name: the folder may be moved, and the query of a signed URL is another one each day."""
    return path.split("?")[0].replace("\\", "/").rsplit("/", 1)[-1]


def text_of(caption):
    if isinstance(caption, str):
        return caption
    tokens, pooled = (None if part is None else torch.from_numpy(part.astype(np.float32)) for part in caption)
    return Text(tokens, None, pooled)


def _as_it_is(chunk):
    """For a DataLoader, which else makes tensors of all arrays: each would travel by a file of its own."""
    return chunk
