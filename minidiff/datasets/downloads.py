"""Published data sets that need the network once: Fashion-MNIST, CIFAR-10, CelebA, LSUN, CUB and Oxford Flowers.

They are read by torchvision, from `cache_folder()/datasets` (or `root=`), and fetched there only with `download=True`.
"""

from functools import partial
from pathlib import Path

import torch

from minidiff.datasets.folder import of_files
from minidiff.datasets.pictures import Pictures, as_rgb, square
from minidiff.datasets.record import InMemory, expect, expect_whole
from minidiff.files import cache_folder

FASHION = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def fashion_mnist(*, size=28, split="train", download=False, root=None):
    """Fashion-MNIST in memory: 60,000 and 10,000 grey pictures (1, size, size), white on black, in 10 classes.

    `size` 28 as published, 32 with a black border of two pixels, or any other, resized.
    """
    expect_whole("fashion_mnist", "size", size, 8)
    expect("fashion_mnist", "split", split, ("train", "test"))
    source = fetched("fashion_mnist", "FashionMNIST", root, download, train=split == "train")
    pictures = torch.as_tensor(source.data)[:, None]
    if size == 32:
        pictures = torch.nn.functional.pad(pictures, (2, 2, 2, 2))
    return whole(pictures, source.targets, FASHION, size)


def cifar10(*, size=32, split="train", download=False, root=None):
    """CIFAR-10 in memory: 50,000 and 10,000 pictures (3, size, size) in 10 classes; resized if `size` is not 32."""
    expect_whole("cifar10", "size", size, 8)
    expect("cifar10", "split", split, ("train", "test"))
    source = fetched("cifar10", "CIFAR10", root, download, train=split == "train")
    return whole(torch.as_tensor(source.data).permute(0, 3, 1, 2), source.targets, CIFAR, size)


def celeba(*, size=64, split="train", download=False, root=None):
    """CelebA's aligned faces (3, size, size), the middle square; one label, the attributes present are the caption.

    `split` "train" (162,770), "valid", "test" or "all". Also has `.attributes`, uint8 (N, 40).
    """
    expect_whole("celeba", "size", size, 8)
    expect("celeba", "split", split, ("train", "valid", "test", "all"))
    source = fetched("celeba", "CelebA", root, download, split=split, target_type="attr")
    names = [name.lower().replace("_", " ") for name in source.attr_names if name]
    captions = [
        ", ".join(["a face", *(name for name, yes in zip(names, row) if yes)]) for row in source.attr.tolist()
    ]
    return Pictures(partial(read_item, source, size), [0] * len(captions), captions, ["face"],
                    attributes=source.attr.to(torch.uint8))  # fmt: skip


def flowers(*, size=64, split="train", download=False, root=None):
    """Oxford Flowers-102 (3, size, size), the middle square; "train" and "valid" have 1,020 pictures, "test" 6,149.

    Captions "a photo of a tiger lily". torchvision needs scipy to read its labels.
    """
    expect_whole("flowers", "size", size, 8)
    expect("flowers", "split", split, ("train", "valid", "test"))
    source = fetched("flowers", "Flowers102", root, download, split="val" if split == "valid" else split)
    labels = source._labels  # the only place it keeps them without opening the pictures
    captions = [f"a photo of a {source.classes[i]}" for i in labels]
    return Pictures(partial(read_item, source, size), labels, captions, source.classes)


def lsun(category, *, size=64, split="train", download=False, root=None):
    """One category of LSUN (3, size, size), the middle square; torchvision needs lmdb to read it."""
    name = f"lsun_{'church' if category == 'church_outdoor' else category}"
    expect_whole(name, "size", size, 8)
    expect(name, "split", split, ("train", "valid"))
    part = f"{category}_{'val' if split == 'valid' else split}"
    folder = Path(root or cache_folder() / "datasets")
    if not (folder / f"{part}_lmdb").is_dir():
        raise FileNotFoundError(
            f"data set {name!r} is not in {folder}, and torchvision cannot download LSUN"
            f"{' (download=True has no effect here)' if download else ''}. Fetch"
            f" http://dl.yf.io/lsun/scenes/{part}_lmdb.zip yourself and unpack it so that {folder / f'{part}_lmdb'}"
            " exists, or name the folder that holds it with root=."
        )
    source = fetched(name, "LSUN", root, False, classes=[part])
    caption = f"a photo of a {category.replace('_outdoor', '')}"
    return Pictures(partial(read_item, source, size), [0] * len(source), [caption] * len(source), [category])


def cub(*, size=64, split="train", download=False, root=None):
    """Caltech-UCSD Birds 200-2011 (3, size, size), the middle square: 5,994 and 5,794 pictures ("all": both).

    200 classes; captions "a photo of a black footed albatross".
    """
    expect_whole("cub", "size", size, 8)
    expect("cub", "split", split, ("train", "test", "all"))
    base = Path(root or cache_folder() / "datasets") / "CUB_200_2011"
    if not (base / "images.txt").is_file():
        raise FileNotFoundError(
            f"data set 'cub' is not in {base.parent}, and torchvision cannot download it"
            f"{' (download=True has no effect here)' if download else ''}. Fetch CUB_200_2011.tgz from"
            " https://data.caltech.edu/records/65de6-vp158 yourself and unpack it so that"
            f" {base / 'images.txt'} exists, or name the folder that holds CUB_200_2011 with root=."
        )
    paths = dict(line.split() for line in (base / "images.txt").read_text().splitlines())
    train = dict(line.split() for line in (base / "train_test_split.txt").read_text().splitlines())
    kept = [path for i, path in paths.items() if split == "all" or (train[i] == "1") == (split == "train")]
    classes = sorted({bird(path) for path in paths.values()})
    names = [bird(path) for path in kept]
    return of_files([base / "images" / path for path in kept], names, [f"a photo of a {name}" for name in names],
                    classes=classes, size=size)  # fmt: skip


def bird(path):
    """'001.Black_footed_Albatross/x.jpg' -> 'black footed albatross'."""
    return path.split("/")[0].split(".")[1].replace("_", " ").lower()


def fetched(name, kind, root, download, **arguments):
    """torchvision's data set of this `kind`, or an error that says how to get it."""
    try:
        import torchvision.datasets
    except ImportError as error:
        raise ImportError(f"data set {name!r} is read by torchvision: pip install torchvision.") from error
    folder = Path(root or cache_folder() / "datasets")
    if download:
        folder.mkdir(parents=True, exist_ok=True)
        arguments["download"] = True
    try:
        return getattr(torchvision.datasets, kind)(folder, **arguments)
    except ModuleNotFoundError as error:
        raise ImportError(f"data set {name!r} needs {error.name}: pip install {error.name}.") from error
    except (OSError, RuntimeError) as error:
        if download:
            raise RuntimeError(
                f"data set {name!r} could not be downloaded to {folder}: {error}. Try again where there is a network,"
                " or copy that folder from a machine that has it. Sets that need none: emoji, shapes, digits, moons."
            ) from error
        raise FileNotFoundError(
            f"data set {name!r} is not in {folder} ({error}). Fetch it once, with a network, by"
            f" load_dataset({name!r}, download=True), or name the folder that holds it with root=. Sets that need no"
            " download: emoji, shapes, digits, moons."
        ) from error


def read_item(source, size, index):
    """Item `index` of a torchvision data set, uint8 (3, size, size)."""
    return square(as_rgb(source[index][0]), size)


def whole(pictures, targets, classes, size):
    """An `InMemory` set of uint8 pictures (N, C, H, W), resized in chunks where they are not of this size."""
    if pictures.shape[-1] != size:
        resized = [
            torch.nn.functional.interpolate(chunk.float(), size=(size, size), mode="bicubic", antialias=True)
            for chunk in pictures.split(5000)
        ]
        pictures = torch.cat([chunk.round_().clamp_(0, 255).to(torch.uint8) for chunk in resized])
    labels = torch.as_tensor(targets).tolist()
    article = {name: "an" if name[0] in "aeiou" else "a" for name in classes}
    captions = [f"a photo of {article[classes[i]]} {classes[i]}" for i in labels]
    return InMemory(pictures.contiguous(), labels, captions, classes)
