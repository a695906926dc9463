"""Shards written: pictures with captions, or what a frozen encoder made of them once instead of in every epoch.

    write_shards(records, "my/shards")
    cache_shards(load_dataset("shards", path="cc12m", size=256), "cc12m-latents", encode_images=..., encode_text=...)

A tar has its name only when it is whole. 00000_stats.json beside 00000.tar says how many samples it has and where the
next shard goes on, so that the same call after a kill keeps what is finished.
"""

import errno
import io
import itertools
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from minidiff.datasets.record import expect, expect_whole, to_float
from minidiff.datasets.shard_stream import text_of
from minidiff.datasets.shards import Shards
from minidiff.layers import Text
from minidiff.safe_files import replacing, write_text


def write_shards(records, folder, *, per_shard=1000, format="jpg", quality=95):
    """Write Records, or (image, caption, metadata dict), to FOLDER/00000.tar, ...; returns the list of all its tars.

    records  a data set with a length, read by number, or anything else that gives its records in order
    image    uint8 or float in [-1, 1] (C, H, W) with C = 1 or 3, or a PIL image
    format   "jpg" of that `quality`, or "png", which is exact and three times as large

    The label of a Record is the field "label" of its metadata. Called again after a kill with the same arguments it
    goes on behind the last whole shard. ValueError if the folder holds shards of another making.
    """
    expect_whole("shards", "per_shard", per_shard, 1)
    expect("shards", "format", format, ("jpg", "png"))
    expect_whole("shards", "quality", quality, 1, 100)
    about = {"per_shard": per_shard, "format": format, "quality": quality}
    return _write(_source(records), lambda rows: (_stored(row, format, quality) for row in rows), folder, per_shard, 1,
                  about)  # fmt: skip


@torch.no_grad()
def cache_shards(dataset, folder, *, encode_images=None, encode_text=None, batch_size=64, per_shard=1000, format="png",
                 progress=True):
    """Write shards with latents and text embeddings in float16 in place of pictures and captions; returns the tars.

    dataset        in memory, read by number, or `Shards`, of which one pass is made in order, without flips
    encode_images  images float32 (B, C, H, W) in [-1, 1] on the CPU -> latents (B, c, h, w): KEY.latent.npy
    encode_text    list of B captions -> Text, or tokens (B, L, D): KEY.tokens.npy (the tokens that count, so that its
                   shape tells the length) and KEY.pooled.npy. The caption itself is kept beside them
    None           keeps the pictures, as "png" or "jpg" (`format`), or the captions as they are

    The label is the field "label" of the metadata: load_dataset("shards", path=folder, label="label") reads it. A
    killed run goes on behind its last whole shard, with the same batches. Many machines: give each its own part of
    the tars and a folder of its own; load_dataset takes a list of folders. FloatingPointError where float16 overflows.
    """
    expect_whole("shards", "batch_size", batch_size, 1)
    expect_whole("shards", "per_shard", per_shard, 1)
    expect("shards", "format", format, ("jpg", "png"))
    about = {"per_shard": per_shard, "batch_size": batch_size, "format": format, "latents": encode_images is not None,
             "text": encode_text is not None}  # fmt: skip

    def encode(rows):
        members = [_stored(row, format, 95, picture=not encode_images) for row in rows]
        if encode_images:
            for each, latent in zip(members, _latents(encode_images, rows), strict=True):
                each["latent.npy"] = _npy(latent)
        if encode_text:
            for each, (tokens, pooled) in zip(members, _texts(encode_text, rows), strict=True):
                each["tokens.npy"] = _npy(tokens)
                if pooled is not None:
                    each["pooled.npy"] = _npy(pooled)
        return members

    source = _source(dataset)
    return _write(lambda place: tqdm(source(place), unit=" samples", disable=not progress), encode, folder, per_shard,
                  batch_size, about)  # fmt: skip


class Row(NamedTuple):
    image: Any  # a tensor (C, H, W) or a PIL image
    caption: Any  # str or Text
    about: dict
    latent: bool = False


def _source(records):
    """Function of a place -> iterator of (the place after it, Row) from there on; places are for JSON, None begins."""
    if isinstance(records, Shards):

        def walk(place):
            for after, (image, label, caption) in records.walk(place or (0, 0)):
                yield after, Row(torch.from_numpy(image), text_of(caption), {"label": label}, image.dtype != np.uint8)

        return walk
    if hasattr(records, "__getitem__") and hasattr(records, "__len__"):
        return lambda place: ((i + 1, _row(records[i])) for i in range(place or 0, len(records)))
    return lambda place: ((i, _row(one)) for i, one in itertools.islice(enumerate(records, 1), place or 0, None))


def _row(record):
    image, second, third = record
    return Row(image, second, third) if isinstance(third, dict) else Row(image, third, {"label": int(second)})


def _write(source, encode, folder, per_shard, batch_size, about):
    """Fill shard after shard with {ending: bytes} of `encode([Row, ...])`; batches end where a shard does."""
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    done, place = _finished(folder, about)
    rows = iter(source(place))
    for number in itertools.count(done):
        mine = itertools.islice(rows, per_shard)
        batch = list(itertools.islice(mine, batch_size))
        if not batch:
            return sorted(folder.glob("*.tar"))
        try:
            with replacing(folder / f"{number:05}.tar") as temporary:
                samples = 0
                with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
                    while batch:
                        for members in encode([row for _, row in batch]):
                            _add(tar, f"{number:05}{samples:04}", members)
                            samples += 1
                        place, batch = batch[-1][0], list(itertools.islice(mine, batch_size))
                stats = {"samples": samples, "next": place, "made_with": about}
                write_text(folder / f"{number:05}_stats.json", json.dumps(stats))  # it is there before the tar is
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(error.errno, f"no space left in {folder}: {number} shards are whole and kept. Make room and "
                          "call again with the same arguments, to go on behind them") from error  # fmt: skip


def _finished(folder, about):
    """(number of whole shards, the place behind them), which must have been made with the same arguments."""
    done, place = 0, None
    while (folder / f"{done:05}.tar").exists():
        try:
            stats = json.loads((folder / f"{done:05}_stats.json").read_text(encoding="utf-8"))
            place, theirs = stats["next"], stats["made_with"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{folder}/{done:05}.tar was not written here, for {done:05}_stats.json does not tell"
                             " how. Give an empty folder.") from error  # fmt: skip
        if theirs != about:
            raise ValueError(f"{folder}/{done:05}.tar was written with {theirs}, now {about}. Give the same arguments"
                             " to go on, or an empty folder.")  # fmt: skip
        done += 1
    return done, place


def _add(tar, key, members):
    for ending, data in members.items():
        member = tarfile.TarInfo(f"{key}.{ending}")  # of time 0: the same samples make the same bytes
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def _stored(row, format, quality, picture=True):
    """{ending: bytes} of a Row as it is: its picture (or latent), caption (or Text), metadata."""
    members = {}
    if row.latent:
        members["latent.npy"] = _npy(row.image)
    elif picture:
        buffer = io.BytesIO()
        _pil(row.image).save(buffer, {"jpg": "jpeg"}.get(format, format), quality=quality)
        members[format] = buffer.getvalue()
    if isinstance(row.caption, Text):
        members["tokens.npy"] = _npy(row.caption.tokens)
        if row.caption.pooled is not None:
            members["pooled.npy"] = _npy(row.caption.pooled)
    elif row.caption is not None:
        members["txt"] = row.caption.encode("utf-8", "replace")
    members["json"] = json.dumps(row.about).encode()
    return members


def _pil(image):
    from PIL import Image

    if isinstance(image, Image.Image):
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    image = torch.as_tensor(image)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"a picture has shape {tuple(image.shape)}; shards take (C, H, W) with C = 1 or 3, uint8 or"
                         " floats in [-1, 1], or a PIL image.")
    if image.is_floating_point():
        image = image.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def _latents(encode, rows):
    if any(row.latent for row in rows):
        raise ValueError("encode_images was given, but the shards hold latents already; leave it out to keep them.")
    latents = encode(torch.stack([to_float(torch.as_tensor(row.image)) for row in rows]))
    if latents.ndim != 4 or len(latents) != len(rows):
        raise ValueError(f"encode_images returned {tuple(latents.shape)} for {len(rows)} pictures; expected latents"
                         f" ({len(rows)}, c, h, w).")  # fmt: skip
    return latents


def _texts(encode, rows):
    """(tokens (L, D) that count, pooled (P,) or None) of each row."""
    if any(not isinstance(row.caption, str) for row in rows):
        raise ValueError("encode_text was given, but a caption is no str: it is encoded already, or missing.")
    text = encode([row.caption for row in rows])
    text = Text(text) if isinstance(text, torch.Tensor) else text
    if text.tokens.ndim != 3 or len(text.tokens) != len(rows):
        raise ValueError(f"encode_text returned tokens {tuple(text.tokens.shape)} for {len(rows)} captions; expected"
                         f" ({len(rows)}, L, D).")  # fmt: skip
    tokens = text.tokens if text.mask is None else [one[mask] for one, mask in zip(text.tokens, text.mask)]
    return zip(tokens, itertools.repeat(None, len(rows)) if text.pooled is None else text.pooled)


def _npy(tensor):
    """The bytes of a .npy in float16."""
    half = tensor.detach().to("cpu", torch.float16)
    if not half.isfinite().all():
        raise FloatingPointError(f"an embedding reaches {tensor.abs().max().item():.3g}, and float16 ends at 65504:"
                                 " divide it in the encoder and multiply after reading.")  # fmt: skip
    buffer = io.BytesIO()
    np.save(buffer, half.numpy(), allow_pickle=False)
    return buffer.getvalue()
