"""Any folder of pictures: subfolders are the labels; captions come from files beside the pictures or their names.

    data = load_dataset("folder", path="my/pictures", size=64)
    data = load_dataset("folder", path="my/pictures", size=256, captions="txt", broken="skip", check="headers")
"""

import hashlib
import os
import unicodedata
import warnings
from functools import partial
from pathlib import Path

from minidiff.datasets.captions import CAPTIONS, captions_of
from minidiff.datasets.pictures import HOW, Pictures, open_header, open_picture, read_picture
from minidiff.datasets.record import expect, expect_whole
from minidiff.datasets.unreadable import UnreadablePicture, shown

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".heic", ".heif", ".bmp", ".gif", ".tif", ".tiff",
           ".ppm", ".pgm")  # fmt: skip
TEST_SHARE = 0.1


def load(*, path=None, size=64, split="all", channels=3, in_memory=False, how="lanczos", flip=False, captions="auto",
         broken="raise", check=None):  # fmt: skip
    """The pictures under `path` as a `Pictures` set, (channels, size, size), cropped to the middle square.

    The first folder below `path` is the label (pictures that lie in `path` itself have the label of its name). Links
    are followed, each folder is read once. `split` "all", or "train" and "test": nine in ten and the rest, by a hash of
    the relative path. Has `.files`, the list of paths.
    how: "lanczos", or "adm", the crop of the published ImageNet models. flip: mirror every other picture at random, by
    torch's global random numbers.
    captions: "txt" (`name.txt` beside `name.jpg`), "name" (the file's, with blanks for underscores and hyphens), "csv"
    or "jsonl" (`metadata.csv`, `metadata.jsonl` with file_name and text, as Hugging Face's imagefolder has), None
    (empty ones); "auto" is metadata where there is one, else the txt file, else the name.
    broken: "raise" an error that names the file when it is read, or "skip": the next picture takes its place, which is
    said once; `data.skipped()` has their numbers. check: before it begins, "headers" opens every file (no picture at
    all, empty, no permission: about 5,000 a second) and "whole" decodes it (cut off, too); what is broken is named all
    at once, or with "skip" left out. in_memory=True reads everything, which a training run wants if it fits.
    Errors: no such folder, nothing in it, no permission, captions missing, a broken picture.
    """
    expect_whole("folder", "size", size, 1)
    for name, value, allowed in (
        ("split", split, ("train", "test", "all")),
        ("channels", channels, (1, 3)),
        ("how", how, HOW),
        ("flip", flip, (False, True)),
        ("captions", captions, CAPTIONS),
        ("broken", broken, ("raise", "skip")),
        ("check", check, (None, "headers", "whole")),
    ):
        expect("folder", name, value, allowed)
    if path is None:
        raise ValueError("data set 'folder': path=None; say which: load_dataset('folder', path='my/pictures').")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data set 'folder': path={str(path)!r} is not a folder; give one with pictures in it.")
    found = walk(root, broken)
    files = sorted(file for file in found if file.suffix.lower() in ENDINGS)
    if not files:
        raise FileNotFoundError(nothing_in(root, found))
    classes = sorted({label_of(file, root) for file in files})  # of all, so that every split numbers them alike
    if split != "all":
        kept = [file for file in files if (split == "test") == in_test(file.relative_to(root).as_posix())]
        if not kept:
            raise ValueError(f"data set 'folder': split={split!r} has none of the {len(files)} pictures; take 'all'.")
        files = kept
    if check:
        files = checked(files, check, broken)
    texts = captions_of(files, found, root, captions)
    return of_files(files, [label_of(file, root) for file in files], texts, classes=classes, size=size,
                    channels=channels, in_memory=in_memory, how=how, flip=flip, broken=broken)  # fmt: skip


def of_files(files, names, captions, *, classes, size, channels=3, in_memory=False, how="lanczos", flip=False,
             broken=None):  # fmt: skip
    """The set of these files with the label `names`; `classes` is the sorted list of all names if None."""
    classes = sorted(set(names)) if classes is None else classes
    number = {name: i for i, name in enumerate(classes)}
    read = partial(read_file, files, size, channels, how)
    labels = [number[name] for name in names]
    pictures = Pictures(read, labels, captions, classes, flip=flip, broken=broken, files=files)
    return pictures.in_memory() if in_memory else pictures


def read_file(files, size, channels, how, index):
    """File number `index`, uint8 (channels, size, size); a function of the module, so that workers can be spawned."""
    return read_picture(files[index], size, channels, how)


def walk(root, broken):
    """All files below `root`, hidden ones left out. Each folder is read once, links to others after real ones.

    So a link that leads back into the tree ends the walk, and a picture is not counted twice.
    """
    files, folders, links = [], [root], []
    seen = {identity(above) for above in root.resolve().parents}  # a link to one of these would bring in half the disk
    while folders or links:
        folder, linked = (folders.pop(), False) if folders else (links.pop(), True)
        try:
            if (itself := identity(folder)) in seen:
                if linked:
                    warnings.warn(f"the link {shown(folder)} leads back to a folder above it or one that was read"
                                  " already; it is left out.", stacklevel=4)  # fmt: skip
                continue
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if broken != "skip" or folder == root:
                raise type(error)(
                    f"cannot look into the folder {shown(folder)}: {error.strerror}. Give yourself permission"
                    " (`chmod u+rx`), move it elsewhere, or go on without it: broken='skip'."
                ) from error
            warnings.warn(f"cannot look into {shown(folder)}: {error.strerror}. It is left out.", stacklevel=4)
            continue
        seen.add(itself)
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            place = folder / entry.name
            if place.is_dir() if entry.is_symlink() else entry.is_dir():
                (links if entry.is_symlink() else folders).append(place)
            elif entry.is_symlink() or entry.is_file():  # a link to nothing is an error when it is read
                files.append(place)
    return files


def identity(folder):
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def nothing_in(root, found):
    """The message for a folder without pictures; it tells what is there instead."""
    endings = [file.suffix.lower() or "no ending" for file in found]
    often = sorted(set(endings), key=lambda ending: (-endings.count(ending), ending))[:3]
    there = ", ".join(f"{endings.count(ending)} with {ending}" for ending in often)
    text = f"data set 'folder': no pictures in {shown(root)} or below; it takes files that end in {', '.join(ENDINGS)}."
    if not found:
        return f"{text} There are no files at all: is it the right folder, is the disk mounted?"
    shards = " For shards take load_dataset('shards', path=...)." if ".tar" in often else ""
    tables = " For parquet take load_dataset('huggingface', path=...)." if {".parquet", ".arrow"} & set(often) else ""
    return f"{text} It has {there}.{shards}{tables}"


def checked(files, check, broken):
    """The files that open (`check` "headers") or decode ("whole"); with broken="raise" an error if some do not."""
    from tqdm import tqdm

    look = open_header if check == "headers" else open_picture
    good, problems = [], []
    for file in tqdm(files, desc="Checking pictures", leave=False, disable=len(files) < 1000):
        try:
            look(file)
            good.append(file)
        except UnreadablePicture as error:
            problems.append(str(error))
    if not problems:
        return files
    first = "\n".join(f"  {problem}" for problem in problems[:5]) + ("\n  ..." if len(problems) > 5 else "")
    text = f"{len(problems)} of {len(files)} pictures cannot be read:\n{first}\n"
    if broken == "raise" or not good:
        raise UnreadablePicture(f"{text}Repair them, take them out, or leave out what is broken: broken='skip'.")
    warnings.warn(f"{text}They are left out.", stacklevel=4)
    return good


def label_of(file, root):
    parts = file.relative_to(root).parts
    return unicodedata.normalize("NFC", shown(parts[0] if len(parts) > 1 else root.resolve().name))


def in_test(name):
    # Macs write 'é' as two characters: in its normal form the same set is split alike everywhere.
    name = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int(hashlib.sha256(name).hexdigest()[:8], 16) / 2**32 < TEST_SHARE
