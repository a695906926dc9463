"""Hugging Face data sets: one that is loaded already, a local folder of one, or a name on the Hub.

    data = load_dataset("huggingface", path="user/birds", size=64, download=True)   # once; afterwards without
    data = load_dataset("huggingface", path=datasets.load_from_disk("birds"), size=64, caption="description")

Only what is read by number: a streaming set is refused. The `datasets` library is needed for names and folders.
"""

import importlib
import io
import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from minidiff.datasets.pictures import HOW, Pictures, as_rgb, read_picture, square
from minidiff.datasets.record import expect, expect_whole
from minidiff.datasets.unreadable import UnreadablePicture
from minidiff.errors import unknown_name

IMAGES = ("image", "img", "picture", "jpg", "png", "webp")
CAPTIONS = ("text", "caption", "captions", "prompt", "description", "sentence")
LABELS = ("label", "labels", "fine_label", "class", "category")


def load(*, path=None, size=64, split="train", channels=3, image=None, caption=None, label=None, config=None,
         download=False, root=None, how="lanczos", flip=False, broken="raise", in_memory=False):  # fmt: skip
    """A Hugging Face data set as a `Pictures` set, (channels, size, size), cropped to the middle square.

    path: a `datasets.Dataset` or `DatasetDict`; a folder (what `save_to_disk` wrote, or parquet, arrow and picture
    files); or a name such as "user/birds", which is fetched only with `download=True`, into Hugging Face's own cache,
    where other programs find it, too, or into `root`. config: the configuration, of a set that has several.
    image, caption, label: names of columns; None finds them by their type and usual names (the first of several
    captions), False takes none (captions "", labels 0). Labels of text are numbered in sorted order; captions of a set
    that has only classes are their names. size, how, flip, broken, in_memory: as in the set "folder".
    Errors: ImportError without the library, FileNotFoundError for what is not on disk, ValueError for a wrong split or
    column and for a streaming set, UnreadablePicture.
    """
    expect_whole("huggingface", "size", size, 1)
    for name, value, allowed in (
        ("channels", channels, (1, 3)),
        ("how", how, HOW),
        ("flip", flip, (False, True)),
        ("broken", broken, ("raise", "skip")),
        ("download", download, (False, True)),
        ("in_memory", in_memory, (False, True)),
    ):
        expect("huggingface", name, value, allowed)
    if path is None:
        raise ValueError("data set 'huggingface': path=None; give a name, a folder, or a datasets.Dataset.")
    table = fetched(path, config, download, root) if isinstance(path, str | os.PathLike) else path
    table = by_number(one_split(table, split))
    table = table.with_format(None) if hasattr(table, "with_format") else table  # not "torch", "numpy", a transform
    image = image_column(table, image)
    labels, classes = labels_of(table, label)
    captions = captions_of(table, caption, image, [classes[i] for i in labels] if classes else None)
    read = partial(read_row, undecoded(table, image), image, size, channels, how)
    pictures = Pictures(read, labels, captions, classes or ["picture"], flip=flip, broken=broken)
    return pictures.in_memory() if in_memory else pictures


def library():
    """The module `datasets`. ImportError that says how to get it, also where a folder of that name hides it."""
    try:
        module = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(
            f"data set 'huggingface' needs the datasets library to read names and folders: pip install datasets"
            f" ({error}). Folders of pictures need none: load_dataset('folder', path=...)."
        ) from error
    if not hasattr(module, "load_from_disk"):
        place = next(iter(getattr(module, "__path__", ["somewhere"])))
        raise ImportError(
            f"data set 'huggingface' needs the datasets library, but `import datasets` finds the folder {place}: pip"
            " install datasets, or rename that folder if it is installed."
        )
    return module


def fetched(path, config, download, root):
    """What the library loads from a folder or a name; the network is used only with `download`."""
    datasets = library()
    folder = Path(path).expanduser()
    if folder.is_file():
        raise ValueError(f"data set 'huggingface': path={str(path)!r} is a file; give the folder that it lies in.")
    if folder.is_dir():
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return datasets.load_from_disk(str(folder))
        path = str(folder)
    elif isinstance(path, os.PathLike) or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise FileNotFoundError(f"data set 'huggingface': path={str(path)!r} is not a folder; give one that exists.")
    try:
        with offline(datasets, not download):
            return datasets.load_dataset(path, config, cache_dir=None if root is None else str(root))
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError and DatasetNotFoundError are OSErrors
        if "Config name" in str(error) or "BuilderConfig" in str(error):
            text = f"data set 'huggingface': config={config!r} of {path!r}: {error}. Say which: config='...'."
            raise ValueError(text) from error
        if folder.is_dir():
            raise ValueError(
                f"data set 'huggingface': {path} cannot be read: {error}. It takes what save_to_disk wrote, parquet,"
                " arrow and pictures; for plain pictures there is load_dataset('folder', path=...)."
            ) from error
        if download:
            raise RuntimeError(
                f"data set 'huggingface': {path!r} could not be downloaded: {error}. Check the name on"
                f" https://huggingface.co/datasets/{path} and the network; for one with terms accept them there and run"
                " `hf auth login`."
            ) from error
        raise FileNotFoundError(
            f"data set 'huggingface': {path!r} is not on this machine ({error}). Fetch it once, with a network, by"
            f" load_dataset('huggingface', path={path!r}, download=True), or give the folder that holds it."
        ) from error


@contextmanager
def offline(datasets, wanted):
    """The library asks the Hub even for what it has in its cache; while this lasts it does not."""
    if not wanted:
        yield
        return
    hub = importlib.import_module("huggingface_hub.constants")
    switches = ((datasets.config, "HF_HUB_OFFLINE"), (datasets.config, "HF_DATASETS_OFFLINE"), (hub, "HF_HUB_OFFLINE"))
    places = [(place, name, getattr(place, name, False)) for place, name in switches]
    try:
        for place, name, _ in places:
            setattr(place, name, True)
        yield
    finally:
        for place, name, before in places:
            setattr(place, name, before)


def one_split(table, split):
    """The split of a DatasetDict; a Dataset as it is."""
    if not isinstance(table, dict):
        return table
    if split not in table:
        raise unknown_name("split of this data set", split, table)
    return table[split]


def by_number(table):
    """The table, if its rows can be read by number."""
    if not hasattr(table, "column_names") or not hasattr(table, "features"):
        raise ValueError(
            f"data set 'huggingface': path is a {type(table).__name__}, expected a name, a folder, a datasets.Dataset"
            " or a DatasetDict."
        )
    if not hasattr(table, "__len__"):
        raise ValueError(
            f"data set 'huggingface': this {type(table).__name__} is a stream, and its pictures are read by number"
            " here, so that a run can be repeated and resumed. Load it without streaming=True; if it is too large"
            " for the disk, write it as shards and take load_dataset('shards', path=...)."
        )
    if not len(table):
        raise ValueError("data set 'huggingface': this split has no rows; take another, or mend the filter before it.")
    return table


def named(table, what, name):
    """The column of this name, which must exist."""
    if name not in table.column_names:
        raise unknown_name(f"{what} column", name, table.column_names)
    return name


def image_column(table, name):
    """The column with the pictures: the named one, the only one of that type, or the only one with a usual name."""
    if name is not None:
        return named(table, "image", name)
    typed = [column for column in table.column_names if kind_of(table, column) == "Image"]
    found = typed or [column for column in table.column_names if column.lower() in IMAGES]
    if len(found) != 1:
        columns = ", ".join(table.column_names)
        problem = f"several columns with pictures ({', '.join(found)})" if found else "no column with pictures"
        raise ValueError(f"data set 'huggingface': {problem} among {columns}; say which: image='...'.")
    return found[0]


def kind_of(table, column):
    """The type of a column, "Image", "ClassLabel" or "Value", by its class name: the library need not be there."""
    return type((table.features or {}).get(column)).__name__


def labels_of(table, name):
    """The labels, a list of int, and their names; zeros and None for a set without."""
    if name is False:
        return [0] * len(table), None
    if name is not None:
        found = named(table, "label", name)
    else:
        typed = [column for column in table.column_names if kind_of(table, column) == "ClassLabel"]
        usual = [column for column in typed or table.column_names if column.lower() in LABELS]
        found = next(iter(usual or typed), None)
    if found is None:
        return [0] * len(table), None
    values = list(table[found])
    classes = getattr(table.features[found], "names", None)
    if all(isinstance(value, str) for value in values):
        classes = sorted(set(values))
        number = {value: i for i, value in enumerate(classes)}
        return [number[value] for value in values], classes
    for row, value in enumerate(values):
        if not isinstance(value, int | np.integer) or value < 0 or (classes and value >= len(classes)):
            raise ValueError(
                f"data set 'huggingface': the label of row {row} in column {found!r} is {value!r}, expected text or a"
                " whole number from 0 (a test set without answers has -1). Take label=False, another column or split."
            )
    return [int(value) for value in values], list(classes or map(str, range(max(values) + 1)))


def captions_of(table, name, image, names):
    """The captions: of the named or found column, else the `names` of the classes, else empty."""
    if name is None:
        columns = {column.lower(): column for column in table.column_names if column != image}
        name = next((columns[usual] for usual in CAPTIONS if usual in columns), None)
    elif name is not False:
        named(table, "caption", name)
    if not name:
        return [str(one) for one in names] if names and name is None else [""] * len(table)
    captions = list(table[name])
    for row, value in enumerate(captions):
        first = value[0] if isinstance(value, list | tuple) and value else value
        if not isinstance(first, str):
            raise ValueError(
                f"data set 'huggingface': the caption of row {row} in column {name!r} is {str(value)[:60]!r}, a"
                f" {type(first).__name__}, expected text. Filter such rows out, name another column, or take"
                " caption=False."
            )
        captions[row] = first
    return captions


def undecoded(table, image):
    """The image column alone, as the bytes of its files where the library gives them: we decode jpgs quicker."""
    if hasattr(table, "select_columns"):
        table = table.select_columns([image])
    if kind_of(table, image) == "Image" and hasattr(table, "cast_column"):
        table = table.cast_column(image, type(table.features[image])(decode=False))
    return table


def read_row(table, image, size, channels, how, index):
    """Picture `index`, uint8 (channels, size, size); a function of the module, so that workers can be spawned."""
    name = f"of row {index} in column {image!r}"
    value = table[index][image]
    if isinstance(value, dict):  # {"bytes": ..., "path": ...}, one of them None
        name = f"{value.get('path') or ''} {name}".strip()
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes | bytearray):
        return read_picture(io.BytesIO(value), size, channels, how, name)
    if isinstance(value, str):
        return read_picture(value, size, channels, how)
    if isinstance(value, list | np.ndarray):
        from PIL import Image

        value = Image.fromarray(np.asarray(value, dtype=np.uint8))
    if not hasattr(value, "convert"):
        raise UnreadablePicture(
            f"cannot read the picture {name}: it is {str(value)[:40]!r}, a {type(value).__name__}, expected a picture,"
            " its bytes or its path. Filter such rows out or name another column: image='...'."
        )
    try:
        return square(as_rgb(value), size, channels, how)
    except (OSError, SyntaxError, ValueError) as error:  # a PIL image decodes its file only now
        raise UnreadablePicture(f"cannot read the picture {name}: {error}. Repair it or take it out.") from error
