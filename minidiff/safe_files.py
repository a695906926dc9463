"""Files that a crash cannot spoil: safetensors with a JSON description inside, and text, whole or not at all."""

import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

ABOUT = "minidiff"  # the one metadata key: with several, their order in the file would differ from run to run


def write_tensors(path, tensors, about):
    """Write `tensors` {name: tensor} and `about` (anything JSON can say) to the safetensors file `path`, atomically.

    Raises OSError if the disk is full or the folder may not be written to; the old file is then as it was.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _without_sharing(tensors).items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={ABOUT: json.dumps(about)})
        except SafetensorError as error:  # it says what the system said, in its own words
            code = re.search(r"os error (\d+)", str(error))
            if not code:
                raise
            code = int(code[1])
            raise OSError(code, os.strerror(code), str(path)) from error


def write_text(path, text):
    """Write `text` to `path`, atomically."""
    with replacing(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def write_bytes(path, data):
    """Write the bytes `data` to `path`, atomically."""
    with replacing(path) as temporary:
        Path(temporary).write_bytes(data)


def read_tensors(path, advice="Get or make the file again."):
    """({name: tensor}, about) of a safetensors file; `about` is None in files that others wrote.

    Raises FileNotFoundError if there is none, ValueError if it is truncated; both messages end with `advice`.
    """
    return _read(path, advice, lambda file: ({name: file.get_tensor(name) for name in file.keys()}, _about(file)))


def read_about(path, advice="Get or make the file again."):
    """What was written as `about`, or None. A truncated file is noticed, though only its beginning is read."""
    return _read(path, advice, _about)


def _about(file):
    about = (file.metadata() or {}).get(ABOUT)
    return json.loads(about) if about else None


def _read(path, advice, what):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}. {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            return what(file)
    except SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is truncated or no safetensors file ({error}). {advice}"
        ) from error


class replacing:
    """`with replacing(path) as temporary:` write there; then it reaches the disk and takes the place of `path`.

    A rename within a folder is atomic, so that a reader, or a run after a crash, sees the old file or the new one.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.temporary = self.path.with_name(self.path.name + ".tmp")

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return str(self.temporary)

    def __exit__(self, kind, error, trace):
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        self.temporary.chmod(0o644)  # what writes safetensors lets only the owner read
        _sync(self.temporary)
        os.replace(self.temporary, self.path)
        if os.name == "posix":  # the folder's entry has to reach the disk too
            _sync(self.path.parent)


def _sync(path):
    handle = os.open(path, os.O_RDWR if path.is_file() and os.name != "posix" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _without_sharing(tensors):
    """Tied weights lie in one storage, which safetensors refuses: the second name gets a copy."""
    seen, result = set(), {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.untyped_storage().data_ptr())
        result[name] = tensor.clone() if place in seen and torch.numel(tensor) else tensor
        seen.add(place)
    return result
