"""Any folder of pictures: subfolders are the labels, a .txt file beside a picture is its caption."""

import hashlib
from functools import partial
from pathlib import Path

from minidiff.datasets.pictures import Pictures, open_picture, square
from minidiff.datasets.record import expect, expect_whole

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TEST_SHARE = 0.1


def load(*, path=None, size=64, split="all", channels=3, in_memory=False):
    """The pictures under `path` as a `Pictures` set, (channels, size, size), centre-cropped.

    The first folder below `path` is the label (pictures that lie in `path` itself have the label of its name). The
    caption is the text of `name.txt` beside `name.jpg`, else the file name with blanks for underscores and hyphens.
    `split` "all", or "train" and "test": nine in ten and the rest, by a hash of the relative path.
    `in_memory=True` reads everything at once, which a training run wants if it fits. Also has `.files`, list of paths.
    Errors: no such folder, nothing in it, and, when it is read, a broken picture, by its name.
    """
    expect_whole("folder", "size", size, 1)
    expect("folder", "split", split, ("train", "test", "all"))
    expect("folder", "channels", channels, (1, 3))
    if path is None:
        raise ValueError("data set 'folder': path=None; say which: load_dataset('folder', path='my/pictures').")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data set 'folder': path={str(path)!r} is not a folder; give one with pictures in it.")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in ENDINGS and not hidden(file, root))
    if not files:
        raise FileNotFoundError(
            f"data set 'folder': no pictures in {root} or below; it takes files that end in {', '.join(ENDINGS)}."
        )
    if split != "all":
        files = [file for file in files if (split == "test") == in_test(file.relative_to(root).as_posix())]
    return of_files(files, [label_of(file, root) for file in files], [caption_of(file) for file in files],
                    classes=None, size=size, channels=channels, in_memory=in_memory)  # fmt: skip


def of_files(files, names, captions, *, classes, size, channels=3, in_memory=False):
    """The set of these files with the label `names`; `classes` is the sorted list of all names if None."""
    classes = sorted(set(names)) if classes is None else classes
    number = {name: i for i, name in enumerate(classes)}
    read = partial(read_file, files, size, channels)
    pictures = Pictures(read, [number[name] for name in names], captions, classes, files=files)
    return pictures.in_memory() if in_memory else pictures


def read_file(files, size, channels, index):
    """File number `index`, uint8 (channels, size, size); a function of the module, so that workers can be spawned."""
    return square(open_picture(files[index]), size, channels)


def hidden(file, root):
    return any(part.startswith((".", "__MACOSX")) for part in file.relative_to(root).parts)


def label_of(file, root):
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else root.resolve().name


def caption_of(file):
    text = file.with_suffix(".txt")
    if text.is_file():
        return " ".join(text.read_text(encoding="utf-8-sig").split())
    return " ".join(file.stem.replace("_", " ").replace("-", " ").split())


def in_test(name):
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < TEST_SHARE
