"""Hugging Face data sets. Most of it on `Table`, a stand-in with the interface that is used of `datasets.Dataset`
(column_names, features, len, a column by its name, a row by its number as a dict with a PIL image), since the library
is no dependency; the last tests are run on the real one where it is installed."""

import io
import sys
import types

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image as Pillow

from minidiff.datasets import load_dataset
from minidiff.datasets.pictures import read_picture
from minidiff.datasets.unreadable import UnreadablePicture


class Image:
    """Named as the real feature is: it is known by its class name."""


class Value:
    pass


class ClassLabel:
    names = ["cat", "dog"]


class Table:
    def __init__(self, columns, **features):
        self.columns = columns
        self.column_names = list(columns)
        self.features = {name: features.get(name, Value()) for name in columns}

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        if isinstance(index, str):
            return self.columns[index]
        return {name: values[index] for name, values in self.columns.items()}


class Stream:
    column_names, features = ["image"], {"image": Image()}


def pictures(count=4, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
    return [Pillow.fromarray(value).convert(mode) for value in values]


def table(count=4, **columns):
    kinds = {"label": ClassLabel()} if isinstance(columns.get("label", [""])[0], int) else {}
    return Table({"image": pictures(count), **columns}, image=Image(), **kinds)


def load(path, size=8, **arguments):
    return load_dataset("huggingface", path=path, size=size, **arguments)


def test_columns_are_found():
    data = load(table(label=[0, 1, 1, 0], text=list("abcd")))
    assert len(data) == 4 and data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 1, 1, 0]
    record = data[2]
    file = io.BytesIO()
    pictures()[2].save(file, "PNG")
    assert torch.equal(record.image, read_picture(file, 8).float() / 127.5 - 1)
    assert record[1:] == (1, "c") and torch.equal(data.in_memory().images()[2], record.image)
    assert load(table(label=[0, 1, 1, 0])).captions == ["cat", "dog", "dog", "cat"]
    assert load(table(label=[0, 1, 1, 0]), caption=False).captions == [""] * 4
    bare = load(table())
    assert bare.labels.tolist() == [0] * 4 and bare.captions == [""] * 4 and bare.classes == ["picture"]


def test_columns_are_named():
    columns = {"left": pictures(), "right": pictures(mode="L"), "kind": list("yxxy"), "words": [["one", "two"]] * 4}
    both = Table(columns, left=Image(), right=Image())
    with pytest.raises(ValueError, match=r"several columns with pictures \(left, right\).*say which: image="):
        load(both)
    data = load(both, image="right", label="kind", caption="words")
    assert data.classes == ["x", "y"] and data.labels.tolist() == [1, 0, 0, 1] and data.captions == ["one"] * 4
    assert torch.equal(data[0].image[0], data[0].image[1])
    assert load(both, image="left", channels=1)[0].image.shape == (1, 8, 8)


@pytest.mark.parametrize("form", ["bytes", "dict of bytes", "dict of path", "path", "array"])
def test_pictures_come_in_many_forms(form, tmp_path):
    content = io.BytesIO()
    picture = pictures()[0]
    picture.save(content, "PNG")
    (tmp_path / "a.png").write_bytes(content.getvalue())
    value = {
        "bytes": content.getvalue(),
        "dict of bytes": {"bytes": content.getvalue(), "path": "a.png"},
        "dict of path": {"bytes": None, "path": str(tmp_path / "a.png")},
        "path": str(tmp_path / "a.png"),
        "array": np.asarray(picture).tolist(),
    }[form]
    assert torch.equal(load(Table({"image": [value]}))[0].image, load(Table({"image": [picture]}))[0].image)


def test_broken_pictures():
    good = io.BytesIO()
    pictures()[0].save(good, "PNG")
    cut = Pillow.open(io.BytesIO(good.getvalue()[:200]))
    rows = [{"bytes": b"", "path": "x/17.jpg"}, cut, None, {"bytes": good.getvalue(), "path": None}]
    messages = ("x/17.jpg of row 0 .*empty", "of row 1 .*trunc", "of row 2 .*None.*Filter such rows")
    for row, message in enumerate(messages):
        with pytest.raises(UnreadablePicture, match=f"cannot read the picture {message}.*broken='skip'"):
            load(Table({"image": rows}))[row]
    data = load(Table({"image": rows, "text": list("abcd")}), broken="skip")
    with pytest.warns(UserWarning, match="x/17.jpg of row 0"):
        assert [record.caption for record in data] == ["d"] * 4
    assert data.skipped() == [0, 1, 2]


@pytest.mark.parametrize(
    "path,arguments,message",
    [
        (None, {}, "path=None; give a name, a folder, or a datasets.Dataset"),
        (17, {}, "path is a int, expected a name, a folder, a datasets.Dataset or a DatasetDict"),
        (Stream(), {}, "this Stream is a stream.*without streaming=True.*shards"),
        ({"train": Stream()}, {}, "this Stream is a stream"),
        ({"train": table(), "valid": table()}, {"split": "test"}, "unknown split.*'test'.*train, valid"),
        (table(count=0), {}, "this split has no rows"),
        (Table({"words": ["a"]}), {}, "no column with pictures among words; say which"),
        (table(), {"image": "imag"}, "unknown image column 'imag'. Did you mean 'image'"),
        (table(), {"caption": "text"}, "unknown caption column 'text'"),
        (table(), {"label": "label"}, "unknown label column 'label'"),
        (table(label=[0, 1, -1, 0]), {}, "label of row 2 in column 'label' is -1.*label=False"),
        (table(label=[0, 1, 2, 0]), {}, "label of row 2 in column 'label' is 2"),
        (table(text=["a", "b", None, "d"]), {}, "caption of row 2 in column 'text' is 'None', a NoneType.*Filter"),
        (table(), {"size": 0}, "size=0, expected a whole number"),
        (table(), {"how": "crop"}, "how='crop' is not one of 'lanczos', 'adm'"),
        (table(), {"flip": True, "in_memory": True}, "with in_memory=True leave it out"),
    ],
)
def test_what_is_wrong_is_said(path, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(path, **arguments)


def test_splits_and_flip():
    data = load({"train": table(4), "test": table(2, text=list("xy"))}, split="test", flip=True)
    torch.manual_seed(0)
    seen = torch.stack([data[0].image for _ in range(20)])
    assert len(data) == 2 and len(seen.unique(dim=0)) == 2
    assert torch.equal(seen.unique(dim=0)[0].flip(-1), seen.unique(dim=0)[1])


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="needs the datasets library.*pip install datasets.*load_dataset.'folder'"):
        load("user/birds")
    assert len(load(table())) == 4  # what is loaded already needs none
    hidden = types.ModuleType("datasets")
    hidden.__path__ = [str(tmp_path / "datasets")]
    monkeypatch.setitem(sys.modules, "datasets", hidden)  # a folder of that name is imported as one
    with pytest.raises(ImportError, match="finds the folder .*datasets: pip install datasets, or rename that folder"):
        load("user/birds")


def library(monkeypatch, load_dataset):
    """A stand-in for the module whose load_dataset is this function."""
    module = types.ModuleType("datasets")
    module.config = types.SimpleNamespace(HF_HUB_OFFLINE=False)
    module.load_dataset, module.load_from_disk = load_dataset, lambda path: {"train": table(3)}
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_the_network_is_asked_only_with_download(monkeypatch):
    seen = []

    def fetch(path, config, cache_dir):
        seen.append((path, config, cache_dir, module.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        return {"train": table(4)}

    module = library(monkeypatch, fetch)
    before = constants.HF_HUB_OFFLINE
    assert len(load("user/birds", config="small", root="/x")) == 4 == len(load("user/birds", download=True))
    assert seen == [("user/birds", "small", "/x", True, True), ("user/birds", None, None, False, before)]
    assert not module.config.HF_HUB_OFFLINE and constants.HF_HUB_OFFLINE == before


@pytest.mark.parametrize(
    "error,arguments,kind,message",
    [
        (ConnectionError("offline"), {}, FileNotFoundError, "'user/birds' is not on this machine .*download=True"),
        (ConnectionError("no"), {"download": True}, RuntimeError, "could not be downloaded: no. Check the name .*log"),
        (ValueError("Config name is missing. Pick a or b"), {}, ValueError, "config=None .* a or b. Say which: conf"),
    ],
)
def test_what_cannot_be_loaded(error, arguments, kind, message, monkeypatch):
    def fail(*_, **__):
        raise error

    module = library(monkeypatch, fail)
    with pytest.raises(kind, match=message):
        load("user/birds", **arguments)
    assert not module.config.HF_HUB_OFFLINE


def test_folders(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise FileNotFoundError("no data files")

    library(monkeypatch, fail)
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot be read: no data files. It takes what save_to_disk wrote"):
        load(tmp_path)
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert len(load(str(tmp_path))) == 3
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load(tmp_path / "dataset_dict.json")


def real(tmp_path):
    """A set of the real library, of jpg files."""
    datasets = pytest.importorskip("datasets")
    if not hasattr(datasets, "load_from_disk"):
        pytest.skip("a folder of that name, not the library")
    for i, picture in enumerate(pictures(6)):
        picture.resize((300, 200)).save(tmp_path / f"{i}.jpg")
    features = datasets.Features(
        picture=datasets.Image(), kind=datasets.ClassLabel(names=["a", "b"]), text=datasets.Value("string")
    )
    columns = {
        "picture": [str(tmp_path / f"{i}.jpg") for i in range(6)],
        "kind": [0, 1] * 3,
        "text": [f"number {i}" for i in range(6)],
    }
    return datasets, datasets.Dataset.from_dict(columns, features=features)


def test_the_real_library(tmp_path):
    datasets, table = real(tmp_path)
    data = load(table.with_format("torch"))
    expected = [load_dataset("folder", path=tmp_path, size=8)[i].image for i in range(6)]
    assert all(torch.equal(record.image, image) for record, image in zip(data, expected))
    assert data.captions[5] == "number 5" and data.classes == ["a", "b"] and data.labels.tolist() == [0, 1] * 3
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved")[5].image, expected[5])
    (tmp_path / "parquet").mkdir()
    table.to_parquet(tmp_path / "parquet" / "train.parquet")
    stored = load(tmp_path / "parquet", root=tmp_path / "cache")
    loader = torch.utils.data.DataLoader(stored, batch_size=3, num_workers=2)
    assert torch.equal(torch.cat([batch.image for batch in loader]), torch.stack(expected))
    with pytest.raises(ValueError, match="IterableDataset is a stream"):
        load(table.to_iterable_dataset())
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' is not on this machine.*download=True"):
        load("nobody/nothing", root=tmp_path / "cache")
