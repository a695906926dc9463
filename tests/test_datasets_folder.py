"""A folder of pictures: labels, captions, modes, cropping, broken files."""

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff.datasets import load_dataset


@pytest.fixture
def folder(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (80, 60), (255, 0, 0)).save(tmp_path / "cats" / "a_red-cat.png")
    Image.new("L", (60, 80), 0).save(tmp_path / "cats" / "b.png")
    (tmp_path / "cats" / "b.txt").write_text("a black cat\nat night\n")
    Image.new("RGBA", (64, 64), (0, 0, 255, 0)).save(tmp_path / "dogs" / "c.png")
    Image.fromarray(np.full((50, 50), 65535, np.uint16)).save(tmp_path / "dogs" / "d.png")
    (tmp_path / "dogs" / "notes.md").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / ".hidden" / "e.png")
    return tmp_path


def test_labels_captions_and_modes(folder):
    data = load_dataset("folder", path=folder, size=16)
    assert data.classes == ["cats", "dogs"] and data.labels.tolist() == [0, 0, 1, 1]
    assert data.captions == ["a red cat", "a black cat at night", "c", "d"]
    expected = [[1, -1, -1], [-1, -1, -1], [1, 1, 1], [1, 1, 1]]  # transparent is white, and so is 16-bit white
    for record, colour in zip(data, expected):
        assert record.image.shape == (3, 16, 16) and record.image.dtype == torch.float32
        assert torch.equal(record.image, torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, 16, 16))
    assert torch.equal(data[-1].image, data[3].image) and data.files[0].name == "a_red-cat.png"
    memory = load_dataset("folder", path=str(folder), size=16, in_memory=True)
    assert torch.equal(memory.images(), torch.stack([r.image for r in data])) and memory.captions == data.captions
    assert load_dataset("folder", path=folder, size=16, channels=1)[0].image.shape == (1, 16, 16)


def test_loader_with_workers(folder):
    loader = torch.utils.data.DataLoader(load_dataset("folder", path=folder, size=16), batch_size=4, num_workers=2)
    batch = next(iter(loader))
    assert batch.image.shape == (4, 3, 16, 16) and list(batch.caption)[1] == "a black cat at night"


def test_no_subfolders(tmp_path):
    place = tmp_path / "mine"
    place.mkdir()
    Image.new("RGB", (8, 8)).save(place / "x.jpg")
    data = load_dataset("folder", path=place, size=8)
    assert data.classes == ["mine"] and len(data) == 1 and data[0].label == 0


def test_centre_crop_and_resize(tmp_path):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255  # only the middle is white
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the small picture can hold: must become grey, not stripes
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    images = {record.caption: record.image for record in load_dataset("folder", path=tmp_path, size=16)}
    assert (images["wide"] == 1).all() and (images["tall"] == 1).all()
    assert images["stripes"].abs().max() < 0.1


def test_turned_photographs_stand_upright(tmp_path):
    picture = Image.fromarray(np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None], 64, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    picture.rotate(90).save(tmp_path / "x.png", exif=exif)
    image = load_dataset("folder", path=tmp_path, size=16)[0].image
    assert (image[0].diff(dim=0) > 0).all() and image[0].diff(dim=1).abs().max() < 0.05


def test_splits(tmp_path):
    for i in range(100):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i:03}.png")
    parts = {s: load_dataset("folder", path=tmp_path, size=4, split=s).captions for s in ("train", "test", "all")}
    assert len(parts["all"]) == 100 and sorted(parts["train"] + parts["test"]) == parts["all"]
    assert 2 < len(parts["test"]) < 25
    assert load_dataset("folder", path=tmp_path, size=4).captions == parts["all"]


@pytest.mark.parametrize("damage", [b"", b"not a picture", "cut"])
def test_broken_file_is_named(folder, damage):
    broken = folder / "dogs" / "broken.png"
    if damage == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(broken)
        damage = broken.read_bytes()[:2000]
    broken.write_bytes(damage)
    data = load_dataset("folder", path=folder, size=16)
    with pytest.raises(ValueError, match="cannot read the picture .*broken.png.*take it out"):
        data[data.files.index(broken)]
    with pytest.raises(ValueError, match="broken.png"):
        load_dataset("folder", path=folder, size=16, in_memory=True)


def test_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        load_dataset("folder", path=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no pictures in .*png"):
        load_dataset("folder", path=tmp_path)
    with pytest.raises(ValueError, match="channels=2 is not one of 1, 3"):
        load_dataset("folder", path=tmp_path, channels=2)
    with pytest.raises(ValueError, match="size=0, expected a whole number"):
        load_dataset("folder", path=tmp_path, size=0)
