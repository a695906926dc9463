"""Tars of samples: found by path or pattern, opened here or fetched, indexed, and a sample of them decoded.

A sample is the members of a tar that share a name up to the first dot: KEY.jpg, KEY.txt, KEY.json.
"""

import errno
import glob
import io
import json
import re
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from minidiff.datasets.pictures import shrunk

BLOCK = 512
PARTS = ("picture", "txt", "json", "latent", "tokens", "pooled")
ENDINGS = {"jpg": 0, "jpeg": 0, "png": 0, "webp": 0, "txt": 1, "json": 2, "latent.npy": 3, "tokens.npy": 4,
           "pooled.npy": 5}  # fmt: skip
FORMATS = ("JPEG", "PNG", "WEBP")
PAUSES = (0, 1, 5)  # seconds before each attempt to fetch a shard


class Skip(Exception):
    """This sample cannot be used; its only argument is the reason, a few words that are counted."""


def expand(path):
    """The sorted list of tars that `path` names: a folder, a file, a pattern with braces or wildcards, or a list."""
    if isinstance(path, (list, tuple)):
        return [tar for item in path for tar in expand(item)]
    return [tar for one in braces(str(path)) for tar in (_remote if remote(one) else _local)(one)]


def remote(path):
    """Whether this is a URL, for fsspec, and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]+(://|::)", str(path)) is not None


def braces(pattern):
    """'{00..02}.tar' -> 00.tar, 01.tar, 02.tar, and '{a,b}.tar' -> a.tar, b.tar; each further brace multiplies."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        return [pattern]
    first, last, words = found.groups()
    if words is None and int(last) < int(first):
        raise ValueError(f"data set 'shards': {found.group()} counts down; write {{{last}..{first}}}.")
    middle = words.split(",") if words else [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
    return [pattern[:found.start()] + word + rest for word in middle for rest in braces(pattern[found.end():])]


def _local(path):
    place = Path(path).expanduser()
    if place.is_dir():
        return sorted(str(file) for file in place.iterdir() if file.suffix == ".tar")  # tells if it may not be read
    if place.exists() or not glob.has_magic(path):
        return [str(place)]  # a file that is missing is noticed, and counted, when its turn comes
    return sorted(file for file in glob.glob(str(place)) if file.endswith(".tar"))


def _remote(url):
    """As `_local`; a question mark begins the query of a URL, and is no wildcard."""
    system, inner = _filesystem(url)  # says now which package is missing for this kind of address
    wild = re.search(r"[*\[]", url)
    if not wild and url.split("?")[0].endswith(".tar"):
        return [url]
    try:
        found = system.glob(inner if wild else inner.rstrip("/") + "/*.tar")
    except FileNotFoundError:
        return []
    return sorted(system.unstrip_protocol(name) for name in found if name.endswith(".tar"))


def _filesystem(url):
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise ValueError(f"data set 'shards': {url}: {error}. Give a path, or a URL of https, s3, gs or hf.") from error
    except ImportError as error:
        raise ImportError(f"data set 'shards': {url} cannot be read: {error}. Install that with pip, or copy the "
                          "shards to a disk.") from error


class Shard:
    """One tar: `len(shard)` samples, `read(i)` -> {part: bytes}, `truncated`, whether its end is missing.

    A local tar is read in place; one behind a URL is first copied into a temporary file without a name, which is gone
    when it is closed or the process ends. OSError where it cannot be opened, ValueError where it is not a tar.
    """

    def __init__(self, path):
        self.file = _fetched(path) if remote(path) else open(path, "rb")  # noqa: SIM115
        try:
            self.table, self.truncated = index(self.file)
        except BaseException:
            self.file.close()
            raise

    def __len__(self):
        return len(self.table)

    def read(self, number):
        """The bytes of each part of sample `number` (in the order of the tar) that it has."""
        parts = {}
        for name, (offset, size) in zip(PARTS, self.table[number].tolist()):
            if offset:
                self.file.seek(offset)
                parts[name] = self.file.read(size)
        return parts

    def close(self):
        self.file.close()


def _fetched(url):
    for pause in PAUSES:
        time.sleep(pause)
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            import fsspec

            with fsspec.open(url, "rb") as source:
                shutil.copyfileobj(source, copy, 1 << 20)
            copy.seek(0)
            return copy
        except Exception as error:  # each kind of address has errors of its own, which are no OSErrors
            copy.close()
            failure = error
        if getattr(failure, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # every other shard would fail too
            raise RuntimeError(f"data set 'shards': no space left in {tempfile.gettempdir()} for a copy of {url}. Set "
                               "TMPDIR to a folder with room for one shard a lane, or take fewer lanes=.") from failure
        if isinstance(failure, (FileNotFoundError, PermissionError)):
            break
    raise OSError(f"{type(failure).__name__}: {failure}") from failure


def index(file):
    """(table, truncated) of an open tar: int64 (samples, 6, 2), offset and size of each of PARTS, 0 where it has none.

    Only the headers are read. Of a truncated tar it has the samples that are whole; the last one counts as whole if it
    has the same parts as the first. ValueError if this is no tar at all.
    """
    numbers, rows = {}, []
    length, truncated = file.seek(0, io.SEEK_END), False
    for name, offset, size in _members(file):
        if name is None:  # also where the member before it was cut
            truncated = True
            break
        folder, _, base = name.rpartition("/")
        key, _, ending = base.partition(".")
        part = ENDINGS.get(ending.lower())
        if part is None or base.startswith("."):
            continue
        row = numbers.setdefault((folder, key), len(rows))
        if row == len(rows):
            rows.append([(0, 0)] * len(PARTS))
        rows[row][part] = (offset, size) if offset + size <= length else (0, 0)
    table = np.array(rows, dtype=np.int64).reshape(len(rows), len(PARTS), 2)
    if truncated and len(table) and ((table[-1, :, 0] > 0) != (table[0, :, 0] > 0)).any():
        table = table[:-1]
    elif truncated and len(table) == 1 and not table[0, :2, 0].all():
        table = table[:0]  # nothing to compare it with, and not even a picture and a caption
    return table, truncated


def _members(file):
    """(name, offset, size) of the files in a tar; a name of None at last if the tar ends without its mark.

    tarfile's own iteration makes an object of thirty fields of each member: three times slower, a second for a shard of
    ten thousand samples, which reading waits for. It also passes over a tar that ends within a header in silence.
    """
    offset, path, length = 0, None, None
    while True:
        file.seek(offset)
        header = file.read(BLOCK)
        if len(header) < BLOCK or header == bytes(BLOCK):
            if len(header) < BLOCK:
                if offset == 0:
                    raise ValueError("it is empty or no tar")
                yield None, offset, 0
            return
        try:
            if tarfile.nti(header[148:156]) != 256 + sum(header) - sum(header[148:156]):
                raise tarfile.InvalidHeaderError("bad checksum")
            size = tarfile.nti(header[124:136])
            if size < 0:
                raise tarfile.InvalidHeaderError("negative size")
        except tarfile.HeaderError as error:
            if offset == 0:
                raise ValueError(f"it is no tar ({error}), or a compressed one") from error
            yield None, offset, 0  # what lies behind cannot be found again
            return
        kind, start = header[156:157], offset + BLOCK
        if kind in b"xL":  # the next header's name and size, in the styles of POSIX and GNU
            text = file.read(size)
            path, length = (text.rstrip(b"\0").decode(errors="replace"), None) if kind == b"L" else _pax(text)
        elif kind in b"0\0007":
            size = size if length is None else length
            yield path or _name(header), start, size
        if kind not in b"xLgK":  # g and K stand between too, and say nothing of interest
            path = length = None
        offset = start + (0 if kind in b"123456" else -(-size // BLOCK) * BLOCK)


def _name(header):
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="replace")


def _pax(text):
    path = re.search(rb"(?:^|\n)\d+ path=([^\n]*)\n", text)
    size = re.search(rb"(?:^|\n)\d+ size=(\d+)\n", text)
    return path and path[1].decode(errors="replace"), int(size[1]) if size else None


def decoded_picture(data, size, channels, how="lanczos", min_side=0, max_aspect=None):
    """uint8 (channels, size, size) from the bytes of a jpg, png or webp. `Skip` where it is broken or filtered out."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:  # no others: for EPS, Pillow would start a program
            low, high = sorted(file.size)
            if low < min_side:
                raise Skip("too small")
            if max_aspect and high > max_aspect * low:
                raise Skip("too long")
            return shrunk(file, size, channels, how)
    except (Skip, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on bytes that are no picture
        raise Skip("broken picture") from error


def decoded_json(data):
    """The dict of a sample's .json, empty if there is none."""
    try:
        metadata = json.loads(data) if data is not None else {}
    except (ValueError, RecursionError) as error:
        raise Skip("bad json") from error
    if not isinstance(metadata, dict):
        raise Skip("bad json")
    return metadata


def decoded_array(data, ndim):
    """A float array of `ndim` axes from the bytes of a .npy, which may hold no objects."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise Skip("broken array") from error
    if array.dtype.kind != "f" or array.ndim != ndim:
        raise Skip("broken array")
    return array
