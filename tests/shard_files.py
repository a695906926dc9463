"""Shards made in the tests, and their streams."""

import io
import itertools
import json
import tarfile

import numpy as np
import torch
from PIL import Image

from minidiff import load_dataset

SIZE = 8


def encoded(array, kind="png"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def picture(number, kind="png"):
    """A grey RGB picture that tells its number, with a white left edge that tells a flip."""
    array = np.full((SIZE, SIZE, 3), number, np.uint8)
    array[:, 0] = 255
    return encoded(array, kind)


def sample(number, **changes):
    """The members of a sample as img2dataset writes it; None leaves one out."""
    about = {"caption": f"picture {number}", "width": 100 + number, "class": number % 3}
    members = {"png": picture(number), "txt": f"picture {number}".encode(), "json": json.dumps(about).encode()}
    return {ending: data for ending, data in (members | changes).items() if data is not None}


def make_tar(path, samples, mtime=1.5):
    """A tar of {key: {ending: bytes}}; a fractional time brings the extended headers that webdataset writes."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for ending, data in members.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size, member.mtime = len(data), mtime
                tar.addfile(member, io.BytesIO(data))
    return path


def make_shards(folder, shards=8, each=6):
    folder.mkdir(exist_ok=True)
    for i in range(shards):
        numbers = range(i * each, (i + 1) * each)
        make_tar(folder / f"{i:05}.tar", {f"{n:09}": sample(n) for n in numbers})
    return folder


def load(path, **options):
    return load_dataset("shards", path=path, size=SIZE, **options)


def numbers(batch):
    return [int(caption.split()[1]) for caption in batch[2]]


def take(data, steps, batch_size=8, seed=0, **options):
    stream = data.stream(batch_size, seed, **options)
    result = list(itertools.islice(stream, steps))
    stream.close()
    return result


def joined(data, steps, world, position=None, **options):
    """(images, labels, captions) of all ranks joined, and their positions joined, for each step."""
    parts = [take(data, steps, rank=rank, world=world, position=position, **options) for rank in range(world)]
    for ranks in zip(*parts):
        position = {}
        for _, of_rank in ranks:
            position |= json.loads(json.dumps(of_rank))
        images, labels, captions = zip(*(batch for batch, _ in ranks))
        yield (torch.cat(images), torch.cat(labels), list(itertools.chain(*captions))), position


def same(one, two):
    return torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) and one[2] == two[2]
