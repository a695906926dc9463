"""Encoded prompts kept on disk, by text and encoder: a data set is encoded once, however often it is trained on.

    encode = CachedEncoder(text_encoder("t5-large"))   # in cache_folder()/text/NAME-FINGERPRINT
    y = encode(captions)                               # encoded and written down; from then on only read

The folder holds shards, safetensors files of up to `chunk` texts: `keys` (n, 16) the hash of each text, `lengths` (n,),
`tokens` (1 + sum of lengths, dim), whose first row is zero and pads, `pooled` (n, pooled_dim), in float16. A shard has
its own keys, so there is no index that could disagree with it, and its name is a hash of them: processes that write at
the same time cannot spoil each other's work. A shard appears whole or not at all; whatever was not reached is encoded
the next time.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path

import numpy as np
import torch

from minidiff.errors import check_whole, warn
from minidiff.files import cache_folder
from minidiff.layers import Text
from minidiff.safe_files import write_tensors
from minidiff.text import check_prompts

DTYPES = {"F16": np.float16, "F32": np.float32, "I32": np.int32, "U8": np.uint8}
SMALL = 64  # so many shards of less than half a chunk are joined into whole ones
ROOM = 2**32  # a text's place is ROOM times the number of its shard, plus its row there
HEADER = 8  # bytes at the start of a safetensors file that say how long its header is


class CachedEncoder:
    """Called like its `encoder`, a TextEncoder; each text is encoded once and then read from `folder`.

    folder  default: a folder of the encoder's own in cache_folder()/text; one folder serves one encoder
    chunk   texts between two writes: what an interruption may lose

    Values pass through float16 (float32 where that would overflow), also the first time. Raises ValueError if the
    folder belongs to another encoder.
    """

    def __init__(self, encoder, folder=None, chunk=1024):
        check_whole("chunk", chunk)
        self.encoder, self.chunk = encoder, chunk
        self.name, self.length = encoder.name, encoder.length
        self.dim, self.pooled_dim = encoder.dim, encoder.pooled_dim
        mark = encoder.fingerprint()
        self.folder = Path(folder) if folder is not None else cache_folder() / "text" / f"{encoder.name}-{mark}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim(mark)
        self._opened, self._numbers, self._places = [], {}, {}  # shards, name -> which of them, key -> place
        self._scan()
        self._join()

    def __len__(self):
        """How many texts are kept, as far as this process knows."""
        return len(self._places)

    def encode(self, prompts):
        """The same as calling it."""
        return self(prompts)

    def __call__(self, prompts):
        prompts = check_prompts(prompts)
        keys = [_key(prompt) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts) if key not in self._places}
        if missing:
            self._scan()  # another process may have been here
            missing = [(key, prompt) for key, prompt in missing.items() if key not in self._places]
            for begin in range(0, len(missing), self.chunk):
                self._write(missing[begin:begin + self.chunk])
        return self._read(np.array([self._places[key] for key in keys], dtype=np.int64))

    def _write(self, items):
        """Encode (key, prompt) pairs and put them into a shard of their own."""
        text = self.encoder([prompt for _, prompt in items])
        tokens, pooled = text.tokens[text.mask].cpu(), text.pooled.cpu()
        tokens = torch.cat([torch.zeros(1, self.dim), tokens])
        fits = all(part.abs().max() < 65000 for part in (tokens, pooled) if part.numel())
        self._save(dict(
            keys=np.frombuffer(b"".join(key for key, _ in items), dtype=np.uint8).reshape(-1, 16),
            lengths=text.mask.sum(1).int().cpu().numpy(),
            **{name: part.to(torch.float16 if fits else torch.float32).numpy()
               for name, part in (("tokens", tokens), ("pooled", pooled))},
        ))  # fmt: skip

    def _save(self, arrays):
        name = f"{hashlib.blake2b(arrays['keys'].tobytes(), digest_size=10).hexdigest()}.safetensors"
        part = self.folder / f"{uuid.uuid4().hex}.part"  # nobody else's, so two writers of one shard do not meet
        write_tensors(part, {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}, {})
        os.replace(part, self.folder / name)
        self._open(name)
        return name

    def _scan(self):
        """Open the shards that came since the last look."""
        for file in sorted(self.folder.glob("*.safetensors")):
            if file.name not in self._numbers:
                self._open(file.name)

    def _open(self, name):
        try:
            shard = _mapped(self.folder / name)
        except FileNotFoundError:  # joined by another process a moment ago
            return
        except (ValueError, KeyError) as error:
            warn(f"{self.folder / name} is damaged and left out: its texts are encoded again ({error})")
            (self.folder / name).unlink(missing_ok=True)
            return
        shard["starts"] = 1 + np.cumsum(shard["lengths"], dtype=np.int64) - shard["lengths"]
        first = ROOM * len(self._opened)
        self._numbers[name] = len(self._opened)
        self._opened.append(shard)
        keys = np.frombuffer(shard["keys"].tobytes(), dtype="V16").tolist()
        self._places.update(zip(keys, range(first, first + len(keys))))

    def _read(self, places):
        """The Text of these places (N,) int64."""
        which, rows = np.divmod(places, ROOM)
        groups = [(self._opened[number], np.flatnonzero(which == number)) for number in np.unique(which)]
        lengths = np.zeros(len(places), dtype=np.int64)
        for shard, mine in groups:
            lengths[mine] = shard["lengths"][rows[mine]]
        width = max(1, int(lengths.max(initial=0)))
        tokens = torch.from_numpy(np.empty((len(places), width, self.dim), np.float32))  # NumPy asks for large pages
        pooled = torch.empty(len(places), self.pooled_dim)
        for shard, mine in groups:
            counts, starts = lengths[mine, None], shard["starts"][rows[mine], None]
            index = np.where(np.arange(width) < counts, starts + np.arange(width), 0)  # (n, width)
            whole = mine[-1] - mine[0] == len(mine) - 1  # a run of neighbours is copied faster
            target = slice(mine[0], mine[-1] + 1) if whole else torch.from_numpy(mine)
            found = torch.from_numpy(shard["tokens"]).index_select(0, torch.from_numpy(index.ravel()))
            found = found.view(len(mine), width, self.dim)
            tokens[target] = found if whole else found.to(tokens.dtype)
            pooled[target] = torch.from_numpy(shard["pooled"])[torch.from_numpy(rows[mine])].to(pooled.dtype)
        mask = torch.from_numpy(np.arange(width) < lengths[:, None])
        device = next(self.encoder.parameters()).device
        return Text(tokens.to(device), mask.to(device), pooled.to(device))

    def _join(self):
        """Many small shards, as batches of a training run leave them, become few large ones."""
        shards = {name: self._opened[number] for name, number in self._numbers.items()}
        small = [name for name, shard in shards.items() if len(shard["lengths"]) < self.chunk // 2]
        if len(small) < SMALL or len({shards[name]["tokens"].dtype for name in small}) > 1:
            return
        group = []
        for name in small:
            group.append(name)
            if sum(len(shards[n]["lengths"]) for n in group) >= self.chunk or name == small[-1]:
                parts = [shards[n] for n in group]
                joined = {field: np.concatenate([part[field] for part in parts])
                          for field in ("keys", "lengths", "pooled")}  # fmt: skip
                tokens = [part["tokens"][1:] for part in parts]
                made = self._save(joined | {"tokens": np.concatenate([parts[0]["tokens"][:1], *tokens])})
                for old in group:  # only now: whoever still has one open can go on reading it
                    if old != made:
                        self._opened[self._numbers.pop(old)] = None
                        (self.folder / old).unlink(missing_ok=True)
                group = []

    def _claim(self, mark):
        """Write down whose folder this is, or raise ValueError if it is another encoder's."""
        file, mine = self.folder / "encoder.json", {"name": self.name, "fingerprint": mark}
        if not file.exists():
            part = self.folder / f"{uuid.uuid4().hex}.part"
            part.write_text(json.dumps(mine), encoding="utf-8")
            os.replace(part, file)
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} does not tell whose folder this is ({error}): delete it, if it is that of"
                             f" {self.name!r} ({mark}), or the folder") from error  # fmt: skip
        if theirs != mine:
            raise ValueError(
                f"the folder {self.folder} keeps what the encoder {theirs['name']!r} ({theirs['fingerprint']}) said,"
                f" not {self.name!r} ({mark}): give another folder, or leave folder=None"
            )


def _key(prompt):
    """16 bytes that stand for a text."""
    return hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _mapped(path):
    """{name: array} of a safetensors file, not read but mapped into memory. ValueError if it is no whole file."""
    total = os.path.getsize(path)
    if total < HEADER:
        raise ValueError("it is truncated")
    try:  # unlike a memmap of NumPy it keeps no file open: of a million captions there are a thousand shards
        data = torch.from_file(str(path), shared=False, size=total, dtype=torch.uint8).numpy()
    except RuntimeError as error:
        raise error if os.path.exists(path) else FileNotFoundError(path) from error
    start = HEADER + int.from_bytes(data[:HEADER].tobytes(), "little")
    if not HEADER + 2 <= start <= total:
        raise ValueError("it is truncated")
    arrays = {}
    for name, entry in json.loads(data[HEADER:start].tobytes()).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if start + end > total:
            raise ValueError("it is truncated")
        arrays[name] = data[start + begin:start + end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    arrays["lengths"], arrays["keys"] = np.array(arrays["lengths"]), np.array(arrays["keys"])
    if len(arrays["keys"]) != len(arrays["lengths"]) or arrays["lengths"].sum() + 1 != len(arrays["tokens"]):
        raise ValueError("its parts do not fit together")
    return arrays
