"""Captioned pictures in tars, as img2dataset writes CC12M or LAION-Aesthetics: KEY.jpg, KEY.txt, KEY.json.

    data = load_dataset("shards", path="cc12m/{00000..01242}.tar", size=64, keep=lambda about: about["width"] >= 256)
    for (images, labels, captions), position in data.stream(batch_size=256, seed=0):
        ...

Read by Python alone. The webdataset package opens a URL by a shell command and resumes about where it was; here no
path reaches a shell (fsspec fetches URLs), and a position is exact: the batch after it is the one an unbroken run would
have had. For that a run has lanes. In each epoch the shards are shuffled and dealt out to the lanes; a lane reads its
shards one after the other, each in a shuffled order of its own, and every batch takes the same number of samples from
each lane. So a few numbers per lane say all, and a lane may be read by any process or worker. A lane with fewer samples
than others is earlier in its next epoch; the next shuffle of the shards evens that out.

A sample that cannot be used is skipped and counted by its reason, and so is a shard: `print(data.report(position))`.
"""

import itertools
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from minidiff.datasets.pictures import HOW
from minidiff.datasets.record import Record, expect, expect_whole, to_float
from minidiff.datasets.shard_reading import (
    Shard,
    Skip,
    decoded_array,
    decoded_json,
    decoded_picture,
    expand,
    remote,
)  # fmt: skip
from minidiff.datasets.shard_stream import batches, begin, lane_name, text_of, told
from minidiff.errors import check_whole


def load(*, path=None, size=64, channels=3, keep=None, min_side=0, max_aspect=None, need_caption=True, label=None,
         classes=None, flip=False, how="lanczos", lanes=None):
    """The `Shards` in these tars, pictures (channels, size, size), the middle square.

    path          a folder, a file, a pattern such as 'cc12m/{00000..01242}.tar' or '*.tar', a URL (https://, s3://,
                  hf://, read through fsspec), or a list of these; what it names is sorted, a list is not
    keep          function of a sample's metadata (the dict of its .json) -> whether to use it
    min_side, max_aspect   of the stored picture: its shorter side in pixels, longer over shorter side
    need_caption  skip samples without one (.txt, else "caption" of the .json); False gives them ""
    label         the field of the metadata that is the label, a whole number or a name in `classes`; None: all 0
    flip          turn each picture left to right with probability 1/2, anew in each epoch
    how           pictures are resized: "lanczos", or "adm" as in the papers that train on ImageNet
    lanes         how many shards are open at once; None takes the most that divides the batch, up to 64

    FileNotFoundError if there are no such tars, ImportError if a kind of URL needs a package that is missing.
    """
    expect_whole("shards", "size", size, 1)
    expect("shards", "channels", channels, (1, 3))
    expect("shards", "how", how, HOW)
    expect_whole("shards", "min_side", min_side, 0)
    if lanes is not None:
        expect_whole("shards", "lanes", lanes, 1)
    if max_aspect is not None and not max_aspect >= 1:
        raise ValueError(f"data set 'shards': max_aspect={max_aspect!r}, expected a number of at least 1, like 2.")
    if keep is not None and not callable(keep):
        raise ValueError(f"data set 'shards': keep={keep!r}, expected a function of the metadata, like"
                         " lambda about: about['width'] >= 256.")
    if not path:
        raise ValueError(f"data set 'shards': path={path!r}; say which: load_dataset('shards', path='my/shards').")
    tars = expand(path)
    if not any(remote(tar) or Path(tar).is_file() for tar in tars):
        raise FileNotFoundError(f"data set 'shards': path={str(path)!r} names no tar that is there; give a folder with"
                                " .tar files, a pattern like 'cc12m/{00000..01242}.tar', or make some: write_shards.")
    return Shards(tars, size, channels, keep, min_side, max_aspect, need_caption, label, classes, flip,
                  how, lanes)  # fmt: skip


class Sample(NamedTuple):
    image: np.ndarray  # uint8 or float32 (C, H, W)
    label: int
    caption: str | tuple  # or (tokens (L, D), pooled (P,) or None), float16: arrays travel between processes as bytes


class Shards:
    """The samples of many tars as a stream; `.paths` the tars, `.classes` the names of the labels. See `load`.

    Iterating gives each sample once as a Record, in the order of the tars and never flipped. Shards that
    `cache_shards` wrote give latents float32 for images, and `Text` without a batch axis for captions.
    """

    def __init__(self, paths, size, channels, keep, min_side, max_aspect, need_caption, label, classes, flip, how,
                 lanes):
        self.paths, self.size, self.channels, self.keep = paths, size, channels, keep
        self.min_side, self.max_aspect, self.need_caption = min_side, max_aspect, need_caption
        self.label, self.flip, self.how, self.lanes = label, flip, how, lanes
        self.classes, self.most = list(classes or ["shards"]), len(classes) if classes else math.inf

    def stream(self, batch_size, seed, position=None, rank=0, world=1, workers=0):
        """Endless iterator of ((images, labels, captions), position): this rank's batch_size / world samples.

        images uint8 (b, C, H, W), or latents float32; labels int64 (b,); captions a list of b str or Text. The batches
        of all ranks in a row are the same for any `world` and `workers`. `position` is a dict for JSON that holds this
        rank's lanes after the batch: those of all ranks, joined, go on in any world whose size divides the lanes.
        """
        check_whole("batch_size", batch_size)
        check_whole("world", world)
        check_whole("workers", workers, 0)
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank} of world={world}: ranks are 0 to {world - 1}")
        start = begin(self.paths, self.lanes, batch_size, seed, position, world)
        mine = range(rank * start["lanes"] // world, (rank + 1) * start["lanes"] // world)
        states = {name: start[name] for name in map(lane_name, mine)}
        fixed = {name: value for name, value in start.items() if not name.startswith("lane ")}
        return batches(self, states, fixed, batch_size // start["lanes"], workers)

    def report(self, position):
        """How many samples were read up to `position` (of one rank, or of all), how many skipped, and why."""
        states = [value for name, value in position.items() if name.startswith("lane ")]
        counts = {}
        for reason, count in itertools.chain.from_iterable(state["skipped"].items() for state in states):
            counts[reason] = counts.get(reason, 0) + count
        return told(sum(state["read"] for state in states), counts)

    def __iter__(self):
        return (Record(_floats(sample.image), sample.label, text_of(sample.caption)) for _, sample in self.walk())

    def walk(self, start=(0, 0)):
        """((shard, number), Sample) of each usable sample in order from that place on; the place is the one after it.

        What was skipped is said in one warning at the end.
        """
        counts, read = {}, 0
        for number in range(start[0], len(self.paths)):
            shard, problems = self.opened(number)
            for problem in problems:
                counts[problem] = counts.get(problem, 0) + 1
            for item in range(start[1] if number == start[0] else 0, len(shard) if shard else 0):
                try:
                    sample = self.decode(shard.read(item))
                except Skip as reason:
                    counts[str(reason)] = counts.get(str(reason), 0) + 1
                    continue
                read += 1
                yield (number, item + 1), sample
            if shard:
                shard.close()
        if counts:
            warnings.warn(f"data set 'shards': {told(read, counts)}", stacklevel=2)

    def opened(self, number):
        """(Shard or None, {what is wrong with it: a message}) of tar `number`."""
        path = self.paths[number]
        try:
            shard = Shard(path)
        except (OSError, ValueError) as error:
            return None, {"unreadable shard": f"the shard {path} cannot be read and is left out: {error}"}
        if shard.truncated:
            return shard, {"truncated shard": f"the shard {path} is truncated; its {len(shard)} whole samples are used"}
        return shard, {} if len(shard) else {"empty shard": f"the shard {path} has no samples"}

    def decode(self, parts, flipped=False):
        """The Sample of the bytes of its parts; raises Skip if there is a reason not to use it."""
        about = decoded_json(parts.get("json"))
        if self.keep:
            self._ask(about)
        label = self._label(about)
        caption = self._caption(parts, about)
        if "latent" in parts:
            if self.flip:
                raise ValueError("flip=True, but the shards hold latents, which cannot be flipped: leave it out.")
            return Sample(decoded_array(parts["latent"], 3).astype(np.float32), label, caption)
        if "picture" not in parts:
            raise Skip("no picture")
        picture = decoded_picture(parts["picture"], self.size, self.channels, self.how, self.min_side, self.max_aspect)
        picture = picture.numpy()
        return Sample(picture[:, :, ::-1] if flipped else picture, label, caption)

    def _ask(self, about):
        try:
            kept = self.keep(about)
        except Exception as error:  # mostly a field that this one sample has not; the report tells if it is all of them
            raise Skip(f"keep failed with {type(error).__name__}") from error
        if not kept:
            raise Skip("not kept")

    def _label(self, about):
        value = about.get(self.label) if self.label else 0
        if isinstance(value, str) and value in self.classes:
            return self.classes.index(value)
        try:
            if int(value) != value or not 0 <= value < self.most:
                raise Skip("bad label")
            return int(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise Skip("bad label") from error

    def _caption(self, parts, about):
        if "tokens" in parts:
            pooled = decoded_array(parts["pooled"], 1) if "pooled" in parts else None
            return decoded_array(parts["tokens"], 2), pooled
        text = parts["txt"].decode("utf-8-sig", "replace") if "txt" in parts else about.get("caption")
        text = " ".join(text.split()) if isinstance(text, str) else ""
        text = text.encode("utf-8", "replace").decode()  # JSON can hold half of an emoji, which nobody could write
        if self.need_caption and not text:
            raise Skip("no caption")
        return text


def _floats(image):
    return to_float(torch.from_numpy(np.ascontiguousarray(image)))
