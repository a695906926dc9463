"""What all data sets have in common: names, arguments, records, loaders, errors; and digits and the downloads."""

import numpy as np
import pytest
import torch

import minidiff
from minidiff.datasets import DATASETS, InMemory, Record, list_datasets, load_dataset

OFFLINE = ["emoji", "shapes", "digits", "moons", "rings", "spirals", "checkerboard", "eight_gaussians", "gaussian_grid",
           "mixture"]  # fmt: skip
ONLINE = ["fashion_mnist", "cifar10", "celeba", "lsun_church", "lsun_bedroom", "cub", "flowers"]


def test_every_name_is_listed():
    assert list_datasets() == sorted([*OFFLINE, *ONLINE, "folder", "huggingface", "shards"]) == sorted(DATASETS)
    assert minidiff.load_dataset is load_dataset and minidiff.Record is Record


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize("split", ["train", "test"])
def test_records(name, split):
    data = load_dataset(name, split=split)
    image, label, caption = record = data[3]
    assert isinstance(record, Record) and record.image is image
    assert image.dtype == torch.float32 and type(label) is int and type(caption) is str
    assert -1.1 <= image.min() and image.max() <= 1.1
    assert 0 <= label < len(data.classes) and all(isinstance(name, str) for name in data.classes)
    assert torch.equal(load_dataset(name, split=split)[3].image, image)
    with pytest.raises(IndexError):
        data[len(data)]
    if isinstance(data, InMemory):
        images = data.images()
        assert images.dtype == torch.float32 and images.shape == (len(data), *image.shape)
        assert torch.equal(images[3], image) and data.labels[3] == label and data.captions[3] == caption
        assert data.labels.dtype == torch.int64 and len(data.labels) == len(data.captions) == len(data)
        images.zero_()
        assert torch.equal(data[3].image, image), "images() must be a copy"


@pytest.mark.parametrize("name", OFFLINE)
def test_train_and_test_differ(name):
    train, test = (load_dataset(name, split=split)[0].image for split in ("train", "test"))
    assert not torch.equal(train, test)


@pytest.mark.parametrize("name", OFFLINE)
def test_default_collate(name):
    data = load_dataset(name)
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=5)))
    assert isinstance(batch, Record)
    assert batch.image.shape == (5, *data[0].image.shape) and batch.label.shape == (5,)
    assert batch.label.dtype == torch.int64 and list(batch.caption) == [data[i].caption for i in range(5)]
    assert torch.equal(batch.image[4], data[4].image)


def test_loader_workers_give_the_same():
    data = load_dataset("shapes", num=12)
    loader = torch.utils.data.DataLoader(data, batch_size=6, num_workers=2)
    assert torch.equal(torch.cat([batch.image for batch in loader]), torch.stack([data[i].image for i in range(12)]))


def test_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'emojis'.*'emoji'"):
        load_dataset("emojis")


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("emoji", {"size": 24}, "size=24 is not one of 16, 32, 64"),
        ("emoji", {"size": 16.0}, "size=16.0"),
        ("emoji", {"split": "valid"}, "split='valid' is not one of 'train', 'test', 'all'"),
        ("emoji", {"style": "apple"}, "style='apple' is not one of 'both', 'google', 'twitter'"),
        ("emoji", {"size": 64, "variants": True}, "size=64.*take size=32"),
        ("shapes", {"size": 8}, "size=8, expected a whole number of at least 16"),
        ("shapes", {"size": "16"}, "size='16'"),
        ("shapes", {"scenes": "three"}, "scenes='three' is not one of 'one', 'two', 'both'"),
        ("shapes", {"seed": -1}, "seed=-1"),
        ("shapes", {"split": "all"}, "split='all'"),
        ("digits", {"size": 28}, "size=28 is not one of 8, 16, 32"),
        ("moons", {"num": 0}, "num=0"),
        ("cifar10", {"split": "valid"}, "split='valid'"),
        ("folder", {}, "path=None"),
    ],
)
def test_wrong_values(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        load_dataset(name, **arguments)


@pytest.mark.parametrize("name, key", [("moons", "size"), ("emoji", "flip"), ("lsun_church", "category")])
def test_unknown_argument(name, key):
    with pytest.raises(TypeError, match=f"data set '{name}': {key}=16, but it has no such argument; it takes .*split"):
        load_dataset(name, **{key: 16})


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 pictures, 1 labels and 2 captions"):
        InMemory(torch.zeros(2, 3, 4, 4), [0], ["", ""], ["a"])


def test_bytes_become_minus_one_to_one():
    pictures = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    data = InMemory(pictures, [0], [""], ["a"])
    assert torch.allclose(data[0].image.flatten(), torch.tensor([-1.0, -0.6, 1.0]), atol=1e-6)


def test_digits():
    train, test, everything = (load_dataset("digits", split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1438, 359, 1797)
    assert torch.bincount(everything.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert train[0].caption == "the digit zero" and train.images().unique().numel() == 17
    # Without leaving the file: the nearest mean picture of the training digits names most test digits.
    means = torch.stack([train.images()[train.labels == i].mean(0).flatten() for i in range(10)])
    named = torch.cdist(test.images().flatten(1), means).argmin(1)
    assert (named == test.labels).float().mean() > 0.85
    for size in (16, 32):
        large = load_dataset("digits", size=size).images()
        assert large.shape == (1438, 1, size, size) and large.abs().max() <= 1
        small = torch.nn.functional.avg_pool2d(large, size // 8)
        assert (small - train.images()).abs().mean() < 0.15


# --- the sets that need a network --------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache, and every way to the network barred."""
    import socket

    def barred(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setenv("MINIDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", barred)
    monkeypatch.setattr(socket.socket, "connect", barred)
    return tmp_path


@pytest.mark.parametrize("name", ONLINE)
def test_absent_says_how_to_get_it(name, no_network):
    with pytest.raises(FileNotFoundError, match=f"'{name}' is not in .*root=") as error:
        load_dataset(name)
    assert str(no_network / "datasets") in str(error.value)
    by_hand = name.startswith("lsun") or name == "cub"
    assert ("http" in str(error.value)) if by_hand else f"load_dataset('{name}', download=True)" in str(error.value)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "flowers"])
def test_download_without_network(name, no_network):
    with pytest.raises(RuntimeError, match=f"(?s)'{name}' could not be downloaded to .*no network in tests"):
        load_dataset(name, download=True)


def test_fashion_mnist_reads_its_files(no_network):
    raw = no_network / "datasets" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        head = np.array([0x0803, 10, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pictures.tobytes())
        head = np.array([0x0801, 10], dtype=">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + bytes(range(10)))
    data = load_dataset("fashion_mnist")
    assert torch.equal(data.pictures[:, 0], torch.from_numpy(pictures))
    assert data[9].caption == "a photo of an ankle boot" and data.classes[9] == "ankle boot"
    padded = load_dataset("fashion_mnist", size=32).images()
    assert torch.equal(padded[..., 2:-2, 2:-2], data.images()) and (padded[..., :2, :] == -1).all()
    assert load_dataset("fashion_mnist", size=14, split="test").images().shape == (10, 1, 14, 14)


def test_cifar10_is_turned_to_records(monkeypatch):
    import torchvision.datasets

    def fake(root, train, download=False):
        assert download is True and not train
        part = type("Source", (), {})()
        part.data = np.zeros((6, 32, 32, 3), np.uint8)
        part.data[..., 0] = 255  # red
        part.targets = [0, 1, 2, 3, 4, 5]
        return part

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    data = load_dataset("cifar10", split="test", download=True)
    assert data.images().shape == (6, 3, 32, 32) and data[0].image[:, 0, 0].tolist() == [1, -1, -1]
    assert data[0].caption == "a photo of an airplane" and data[3].caption == "a photo of a cat"
    assert load_dataset("cifar10", size=16, split="test", download=True)[5].image[:, 8, 8].tolist() == [1, -1, -1]


def test_celeba_flowers_lsun_are_turned_to_records(monkeypatch, tmp_path):
    import torchvision.datasets
    from PIL import Image

    class Fake:
        attr, attr_names = torch.tensor([[1, 0], [1, 1]]), ["Smiling", "Wearing_Hat", ""]
        classes, _labels = ["pink primrose", "tiger lily"], [1, 0]

        def __init__(self, root, **arguments):
            self.arguments = arguments

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Image.new("RGB", (40, 60), (0, 255, 0) if index else (255, 0, 0)), 0

    for kind in ("CelebA", "Flowers102", "LSUN"):
        monkeypatch.setattr(torchvision.datasets, kind, Fake)
    (tmp_path / "church_outdoor_val_lmdb").mkdir()
    faces = load_dataset("celeba", size=16, root=tmp_path)
    assert faces.captions == ["a face, smiling", "a face, smiling, wearing hat"] and faces.attributes.shape == (2, 2)
    blooms = load_dataset("flowers", size=16, root=tmp_path, split="valid")
    assert blooms.captions == ["a photo of a tiger lily", "a photo of a pink primrose"]
    assert blooms.labels.tolist() == [1, 0] and blooms.classes == ["pink primrose", "tiger lily"]
    churches = load_dataset("lsun_church", size=16, root=tmp_path, split="valid")
    assert churches[1].caption == "a photo of a church"
    for data in (faces, blooms, churches):
        assert len(data) == 2 and data[1].image.shape == (3, 16, 16) and data[1].image[:, 3, 3].tolist() == [-1, 1, -1]
        assert data.in_memory().images().shape == (2, 3, 16, 16)


def test_cub_is_read_from_its_folder(tmp_path):
    from PIL import Image

    base = tmp_path / "CUB_200_2011"
    names = ["001.Black_footed_Albatross/a.jpg", "001.Black_footed_Albatross/b.jpg", "002.Laysan_Albatross/c.jpg"]
    for name in names:
        (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40), "blue").save(base / "images" / name)
    (base / "images.txt").write_text("".join(f"{i + 1} {name}\n" for i, name in enumerate(names)))
    (base / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n")
    train, test, everything = (load_dataset("cub", size=16, root=tmp_path, split=s) for s in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1, 2, 3)
    assert test.labels.tolist() == [0, 1] and test[1].caption == "a photo of a laysan albatross"
    assert train[0].image.shape == (3, 16, 16) and train.classes == ["black footed albatross", "laysan albatross"]
