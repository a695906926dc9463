"""A folder of pictures: labels, captions, modes, cropping, broken files."""

import json
import os
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff.datasets import load_dataset
from minidiff.datasets.unreadable import UnreadablePicture

pytestmark = pytest.mark.filterwarnings("ignore:data set 'folder'.*have no caption")


def fill(folder, *names, size=8):
    """Plain pictures of these names, each of its own grey."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (10 * i, 0, 0)).save(folder / name, "JPEG" if "jp" in name.lower() else "PNG")


def names(data):
    return [file.name for file in data.files]


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
    with pytest.raises(FileNotFoundError, match="no pictures in .*png.*There are no files at all.*disk mounted"):
        load_dataset("folder", path=tmp_path)
    for argument, value, message in (
        ("channels", 2, "channels=2 is not one of 1, 3"),
        ("size", 0, "size=0, expected a whole number"),
        ("how", "crop", "how='crop' is not one of 'lanczos', 'adm'"),
        ("flip", 1, "flip=1 is not one of False, True"),
        ("captions", "text", "captions='text' is not one of 'auto', 'txt', 'name', 'csv', 'jsonl', None"),
        ("broken", "ignore", "broken='ignore' is not one of 'raise', 'skip'"),
        ("check", True, "check=True is not one of None, 'headers', 'whole'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset("folder", path=tmp_path, **{argument: value})


def test_a_folder_of_something_else_says_of_what(tmp_path):
    for name in ("a.tar", "b.tar", "c.json", "d.parquet", "README"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="It has 2 with .tar, 1 with .json.*load_dataset.'shards'"):
        load_dataset("folder", path=tmp_path)


def test_a_split_without_pictures(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    with pytest.raises(ValueError, match="split='test' has none of the 2 pictures; take 'all'"):
        load_dataset("folder", path=tmp_path, split="test")


def test_splits_number_the_classes_alike(tmp_path):
    fill(tmp_path, "a/rare.png", *(f"b/{i}.png" for i in range(40)))
    parts = [load_dataset("folder", path=tmp_path, size=8, split=s) for s in ("train", "test")]
    assert parts[0].classes == parts[1].classes == ["a", "b"]
    seen = {(file.parent.name, label) for part in parts for file, label in zip(part.files, part.labels.tolist())}
    assert seen == {("a", 0), ("b", 1)}


def test_uppercase_endings_and_unicode_names(tmp_path):
    fill(tmp_path, "猫/DSC_1.JPG", "é/b.Png", "é/ü-ö.JPEG")
    (tmp_path / "猫" / "DSC_1.TXT").write_text("ein Kätzchen", encoding="utf-8")
    data = load_dataset("folder", path=tmp_path, size=8)
    assert sorted(data.captions) == ["b", "ein Kätzchen", "ü ö"] and set(data.classes) == {"猫", "é"}


def test_the_two_ways_to_write_an_accent_are_one(tmp_path):
    long, short = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    for folder, form in (("mac", long), ("linux", short)):
        fill(tmp_path / folder, *(f"{form}/{form} {i}.png" for i in range(30)))
        row = {"file_name": f"{short}/{short} 0.png", "text": "the first"}
        (tmp_path / folder / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    for split in ("train", "test"):
        mac, linux = (load_dataset("folder", path=tmp_path / f, size=8, split=split) for f in ("mac", "linux"))
        assert mac.captions == linux.captions and mac.classes == [short] == linux.classes
    captions = load_dataset("folder", path=tmp_path / "mac", size=8).captions
    assert captions[0] == "the first" and captions[1] == f"{short} 1"


@pytest.mark.skipif(os.name != "posix", reason="names there are bytes")
def test_names_that_are_no_unicode(tmp_path):
    fill(tmp_path, "good.png")
    try:
        os.rename(tmp_path / "good.png", os.path.join(os.fsencode(tmp_path), b"bad\xff.png"))
    except OSError:
        pytest.skip("this file system takes Unicode only")
    data = load_dataset("folder", path=tmp_path, size=8)
    assert data[0].caption.encode().startswith(b"bad") and data[0].image.shape == (3, 8, 8)
    os.truncate(data.files[0], 5)
    with pytest.raises(UnreadablePicture) as error:
        data[0]
    str(error.value).encode()  # can be printed


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "set", "cats/a.png", "cats/deep/b.png")
    fill(tmp_path / "elsewhere", "c.png")
    os.symlink(tmp_path / "set", tmp_path / "set" / "cats" / "round")
    os.symlink(tmp_path, tmp_path / "set" / "up")
    os.symlink(tmp_path / "set" / "self", tmp_path / "set" / "self")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "birds")
    with pytest.warns(UserWarning, match="the link .*leads back to a folder above it") as said:
        data = load_dataset("folder", path=tmp_path / "set", size=8, captions="name")
    assert names(data) == ["c.png", "a.png", "b.png"] and data.classes == ["birds", "cats"]
    assert sorted(str(w.message).split("/")[-1].split()[0] for w in said) == ["round", "up"]


def test_a_link_to_nothing_is_an_error_when_read(tmp_path):
    fill(tmp_path, "a.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "b.png")
    data = load_dataset("folder", path=tmp_path, size=8)
    with pytest.raises(UnreadablePicture, match="b.png: it is a link to a file that does not exist"):
        data[1]


def test_folders_without_permission(tmp_path, monkeypatch):
    fill(tmp_path, "a/a.png", "secret/b.png")
    look = os.scandir

    def refuse(folder):  # a superuser, who may run this, is refused nothing
        if "secret" in str(folder):
            raise PermissionError(13, "Permission denied")
        return look(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="cannot look into the folder .*secret: Permission denied.*chmod u.rx"):
        load_dataset("folder", path=tmp_path, size=8)
    with pytest.warns(UserWarning, match="cannot look into .*secret: Permission denied. It is left out"):
        assert names(load_dataset("folder", path=tmp_path, size=8, broken="skip")) == ["a.png"]


@pytest.fixture
def damaged(tmp_path):
    """Six pictures: number 2 is a text, 4 is cut off."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for i in range(6):
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_text("oops")
    os.truncate(tmp_path / "4.png", 4000)
    return tmp_path


def test_check_names_all_broken_ones_before_training(damaged):
    with pytest.raises(UnreadablePicture, match="(?s)1 of 6 pictures cannot be read:.*2.png: it is.*broken='skip'"):
        load_dataset("folder", path=damaged, size=8, check="headers")
    with pytest.raises(UnreadablePicture, match="(?s)2 of 6 pictures cannot be read:.*2.png.*4.png.*truncated"):
        load_dataset("folder", path=damaged, size=8, check="whole")


def test_check_and_skip_leave_them_out(damaged):
    with pytest.warns(UserWarning, match="(?s)2 of 6 pictures cannot be read.*They are left out"):
        data = load_dataset("folder", path=damaged, size=8, check="whole", broken="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [record.caption for record in data] == ["0", "1", "3", "5"] and data.skipped() == []
        load_dataset("folder", path=damaged, size=8, check=None)
    for name in "0135":
        (damaged / f"{name}.png").write_text("oops")
    with pytest.raises(UnreadablePicture, match="6 of 6 pictures cannot be read"):
        load_dataset("folder", path=damaged, size=8, check="whole", broken="skip")


def test_a_run_goes_on_past_broken_ones(damaged):
    data = load_dataset("folder", path=damaged, size=8, broken="skip")
    with pytest.warns(UserWarning, match="2.png: it is no picture.*The next one takes its place"):
        assert [record.caption for record in data] == ["0", "1", "3", "3", "5", "5"]
    assert [data.files[i].name for i in data.skipped()] == ["2.png", "4.png"]
    with pytest.warns(UserWarning, match="It is left out"):
        memory = load_dataset("folder", path=damaged, size=8, broken="skip", in_memory=True)
    assert memory.captions == ["0", "1", "3", "5"] == [file.stem for file in memory.files] and len(memory.images()) == 4
    with pytest.raises(UnreadablePicture, match="2.png.*Or go on without it: broken='skip'"):
        load_dataset("folder", path=damaged, size=8)[2]


def test_captions_from_texts(tmp_path):
    fill(tmp_path, *(f"{i}_x.png" for i in range(8)))
    for i in range(8):
        (tmp_path / f"{i}_x.txt").write_text(f"\ufeffnumber\n{i}", encoding="utf-8")
    assert load_dataset("folder", path=tmp_path, size=8, captions="txt").captions[3] == "number 3"
    assert load_dataset("folder", path=tmp_path, size=8, captions="name").captions[3] == "3 x"
    assert load_dataset("folder", path=tmp_path, size=8, captions=None).captions == [""] * 8
    for i in range(7):
        (tmp_path / f"{i}_x.txt").unlink()
    with pytest.raises(ValueError, match="7 of 8 pictures have no .txt file.*0_x.png, .*4_x.png, [.]{3}.*'auto'"):
        load_dataset("folder", path=tmp_path, size=8, captions="txt")
    with pytest.warns(UserWarning, match="7 of 8 pictures have no caption and get their file name, like '0 x'"):
        assert load_dataset("folder", path=tmp_path, size=8).captions[6:] == ["6 x", "number 7"]
    (tmp_path / "7_x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="7_x.txt is not UTF-8.*save it as UTF-8"):
        load_dataset("folder", path=tmp_path, size=8)


def test_captions_from_tables(tmp_path):
    fill(tmp_path, "a.png", "in/b.png", "in/c.png")
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"one, two"\nin/b.png,far\nin/c.png,"three\nlines"\n')
    expected = ["one, two", "far", "three lines"]
    assert load_dataset("folder", path=tmp_path, size=8, captions="csv").captions == expected
    assert load_dataset("folder", path=tmp_path, size=8).captions == expected
    (tmp_path / "in" / "metadata.csv").write_text("file_name,caption\nb.png,near\n")
    assert load_dataset("folder", path=tmp_path, size=8, captions="csv").captions == ["one, two", "near", "three lines"]
    with pytest.raises(FileNotFoundError, match="captions='jsonl', but there is no metadata.jsonl in .*Write one"):
        load_dataset("folder", path=tmp_path, size=8, captions="jsonl")
    rows = [{"file_name": "a.png", "text": "A", "more": [1]}, {"file_name": "in/b.png", "text": "B\u2028b"}]
    table = tmp_path / "metadata.jsonl"
    table.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="1 of 3 pictures have no line in metadata.jsonl: in/c.png. Write"):
        load_dataset("folder", path=tmp_path, size=8, captions="jsonl")
    (tmp_path / "in" / "c.png").unlink()
    assert load_dataset("folder", path=tmp_path, size=8, captions="jsonl").captions == ["A", "B b"]


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("jsonl", '{"file_name": "a.png", "text": "A"}\n{"file_name": ', "line 2: .* is not like .*mend that line"),
        ("jsonl", "[1, 2]", "line 1: .* is not like"),
        ("jsonl", '{"file_name": "a.png", "text": null}', "entry 1: .*expected a file_name and a text, both text"),
        ("csv", "file_name,words\na.png,A", "has file_name, words; expected file_name and one of text, caption"),
        ("csv", "name,text\na.png,A", "has name, text; expected file_name"),
        ("csv", "file_name,text\na.png", "entry 1: .*expected a file_name and a text, both text"),
    ],
)
def test_tables_that_are_none(tmp_path, name, content, message):
    fill(tmp_path, "a.png")
    (tmp_path / f"metadata.{name}").write_text(content)
    with pytest.raises(ValueError, match=f"metadata.{name}.*{message}"):
        load_dataset("folder", path=tmp_path, size=8, captions=name)


def test_flip_and_crop_are_passed_on(tmp_path):
    halves = np.zeros((40, 70, 3), np.uint8)
    halves[:, 35:] = 255
    Image.fromarray(halves).save(tmp_path / "a.png")
    data = load_dataset("folder", path=tmp_path, size=8, flip=True)
    torch.manual_seed(0)
    seen = [data[0].image[0, 0, 0].item() for _ in range(20)]
    assert set(seen) == {-1.0, 1.0}
    torch.manual_seed(0)
    assert [data[0].image[0, 0, 0].item() for _ in range(20)] == seen
    plain, adm = (load_dataset("folder", path=tmp_path, size=8, how=how)[0].image for how in ("lanczos", "adm"))
    assert not torch.equal(plain, adm)
    with pytest.raises(ValueError, match="with in_memory=True leave it out"):
        load_dataset("folder", path=tmp_path, size=8, flip=True, in_memory=True)
