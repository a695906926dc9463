"""Pictures of any kind: modes, orientation, crops, broken files and what is said about them, replacement, mirroring."""

import io
import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff.datasets.pictures import Pictures, UnreadablePicture, open_header, open_picture, read_picture, square


def stored(picture, kind="PNG", **options):
    """A binary file with this picture."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file


def noise(width, height, spots=8, seed=0):
    """A smooth picture of random colours, `spots` of them side by side: what a jpg keeps."""
    values = np.random.default_rng(seed).integers(0, 256, (spots, spots, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.BICUBIC)


def palette_with_hole():
    """Left half transparent, right half red, in a palette."""
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 255, 0, 255, 0, 0])
    picture.paste(0, (0, 0, 4, 8))
    return stored(picture, transparency=0)


def grey16(value, kind="PNG", transparency=None):
    options = {} if transparency is None else {"transparency": transparency}
    return stored(Image.fromarray(np.full((8, 8), value, np.uint16)), kind, **options)


def animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return stored(frames[0], "GIF", save_all=True, append_images=frames[1:])


MODES = {
    "grey": (lambda: stored(Image.new("L", (8, 8), 77)), (77, 77, 77)),
    "grey and alpha": (lambda: stored(Image.new("LA", (8, 8), (0, 51))), (204, 204, 204)),
    "RGBA on white": (lambda: stored(Image.new("RGBA", (8, 8), (255, 0, 0, 51))), (255, 204, 204)),
    "palette": (lambda: stored(Image.new("RGB", (8, 8), (9, 99, 200)).quantize()), (9, 99, 200)),
    "one bit": (lambda: stored(Image.new("1", (8, 8), 1)), (255, 255, 255)),
    "16 bits, white": (lambda: grey16(65535), (255, 255, 255)),
    "16 bits, middle": (lambda: grey16(257 * 100), (100, 100, 100)),
    "16 bits, nearly black": (lambda: grey16(200), (1, 1, 1)),  # 200 / 257, not 200
    "16 bits, tif": (lambda: grey16(257 * 100, "TIFF"), (100, 100, 100)),
    "16 bits, transparent": (lambda: grey16(5000, transparency=5000), (255, 255, 255)),
    "32 bits": (lambda: stored(Image.fromarray(np.full((8, 8), 51400, np.int32)), "TIFF"), (200, 200, 200)),
    "floats to 1": (lambda: stored(Image.fromarray(np.full((8, 8), 0.2, np.float32)), "TIFF"), (51, 51, 51)),
    "floats to 255": (lambda: stored(Image.fromarray(np.full((8, 8), 51.0, np.float32)), "TIFF"), (51, 51, 51)),
    "CMYK": (lambda: stored(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
    "first frame": (animation, (255, 0, 0)),
}


@pytest.mark.parametrize("name", MODES)
def test_modes(name):
    make, colour = MODES[name]
    picture = open_picture(make())
    assert picture.mode == "RGB" and picture.size == (8, 8) and picture.getcolors() == [(64, colour)]


def test_palette_with_transparency():
    picture = open_picture(palette_with_hole())
    assert picture.getpixel((1, 4)) == (255, 255, 255) and picture.getpixel((6, 4)) == (255, 0, 0)


def test_cmyk_jpg():
    picture = open_picture(stored(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(np.subtract(picture.getpixel((8, 8)), (255, 0, 0))).max() <= 3


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_every_orientation(turn, kind):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # a corner that is white, on a side that is long
    back = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
            6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270}  # fmt: skip
    lying = Image.fromarray(upright)
    lying = lying.transpose(back[turn]) if turn in back else lying
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = open_picture(stored(lying, kind, exif=exif))
    assert picture.size == (32, 16) and np.abs(np.asarray(picture).astype(int) - upright).max() <= 40


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_orientation_is_no_broken_picture():
    whole = stored(Image.new("RGB", (8, 8), "red"), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12")
    assert open_picture(whole).getpixel((0, 0)) == (255, 0, 0)


def test_ending_does_not_matter(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(stored(noise(8, 8), "JPEG").getvalue())
    assert open_picture(path).size == open_header(path) == (8, 8)


def cut():
    whole = stored(Image.effect_noise((64, 64), 90), "JPEG").getvalue()
    return whole[: len(whole) // 2]


BROKEN = {
    "empty": (b"", r"the file is empty \(0 bytes\). Fetch it again"),
    "text": (b"not a picture at all", "no picture of a kind that Pillow knows; it begins with b'not a picture"),
    "web page": (b"\n<!DOCTYPE html><html>", "a web page, mostly the trace of a failed download"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer.*git lfs pull"),
    "svg": (b"\xef\xbb\xbf<svg xmlns=''></svg>", "an SVG drawing. Render it to png"),
    "pdf": (b"%PDF-1.7\n", "a PDF document"),
    "zip": (b"PK\x03\x04abcdefgh", "a zip archive. Unpack it"),
    "video": (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video or another file of the MP4 family"),
    "cut off": (cut(), "truncated.*Repair it or take it out"),
    "floats": (stored(Image.fromarray(np.full((8, 8), -1.0, np.float32)), "TIFF").getvalue(), "-1 to -1, expected"),
    "not a number": (stored(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF").getvalue(), "from nan to"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(name, tmp_path):
    content, message = BROKEN[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for file, called in ((path, "a.jpg"), (str(path), "a.jpg"), (io.BytesIO(content), "00017 of x.tar")):
        with pytest.raises(UnreadablePicture, match=f"(?s)cannot read the picture .*{called}: .*{message}"):
            open_picture(file, name="00017 of x.tar" if called != "a.jpg" else None)


def test_heic_without_its_plugin(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    with pytest.raises(UnreadablePicture, match="IMG_1.HEIC: it is a HEIC picture.*pip install pillow-heif"):
        open_picture(path)


def test_bombs(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadablePicture, match="larger than Pillow reads unasked .*MAX_IMAGE_PIXELS = None"):
        open_picture(stored(Image.new("L", (30, 30))))


def test_missing_files_and_permissions(tmp_path, monkeypatch):
    with pytest.raises(UnreadablePicture, match="gone.png: there is no such file"):
        open_picture(tmp_path / "gone.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "link.png")
    with pytest.raises(UnreadablePicture, match="link.png: it is a link to a file that does not exist"):
        open_picture(tmp_path / "link.png")
    os.symlink(tmp_path / "self.png", tmp_path / "self.png")
    with pytest.raises(UnreadablePicture, match="self.png: .*symbolic links"):
        open_picture(tmp_path / "self.png")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)  # a superuser, who may run this, is refused nothing
    with pytest.raises(UnreadablePicture, match="no permission to read it. `chmod u[+]r` it"):
        open_picture(tmp_path / "gone.png")


def test_what_is_no_fault_of_the_file_passes(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(MemoryError):
        open_picture(io.BytesIO(b""))


def adm(array, size):
    """ADM's crop of a (H, W) array, by what it says: means of 2 x 2 while they fit, Pillow's bicubic, the middle."""
    while min(array.shape) >= 2 * size:
        array = np.floor((array[:, ::2] + array[:, 1::2]) / 2 + 0.5)  # Pillow rounds after each direction
        array = np.floor((array[::2] + array[1::2]) / 2 + 0.5)
    scale = size / min(array.shape)
    picture = Image.fromarray(array.astype(np.uint8))
    picture = picture.resize((round(array.shape[1] * scale), round(array.shape[0] * scale)), Image.BICUBIC)
    top, left = (picture.size[1] - size) // 2, (picture.size[0] - size) // 2
    return np.asarray(picture)[top : top + size, left : left + size]


@pytest.mark.parametrize("width,height", [(64, 64), (120, 88), (16, 16), (31, 47), (10, 13)])
def test_crop_of_adm(width, height):
    grey = noise(width, height).convert("L")
    expected = adm(np.asarray(grey, dtype=np.float64), 16)
    assert np.array_equal(square(grey, 16, 1, "adm")[0].numpy(), expected)
    got = read_picture(stored(grey.convert("RGB")), 16, how="adm")
    assert torch.equal(got, square(grey.convert("RGB"), 16, 3, "adm"))
    if width > 2 * 16:
        assert not torch.equal(got, square(grey.convert("RGB"), 16))  # the two ways are two


def test_adm_refuses_what_would_fill_the_memory():
    with pytest.raises(UnreadablePicture, match="9000 x 2 pixels: too long and thin for how='adm'"):
        read_picture(stored(Image.new("L", (9000, 2))), 256, how="adm")
    assert read_picture(stored(Image.new("L", (9000, 2))), 16).shape == (3, 16, 16)


@pytest.mark.parametrize("width,height", [(512, 384), (500, 375), (427, 640), (1283, 901)])
def test_jpgs_are_shrunk_while_decoding_and_stay_in_place(width, height, monkeypatch):
    file = stored(noise(width, height), "JPEG", quality=95)
    calls = []
    decode = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: calls.append(self.size) or decode(self, *a, **k))
    quick = read_picture(file, 48).float()
    assert min(calls[0]) < 0.6 * min(width, height)  # it was smaller before it was resized
    error = quick - square(open_picture(file), 48).float()
    assert error.square().mean().sqrt() < 1  # cropped by whole pixels of the shrunk picture it is 1.4 to 2.2


def test_a_jpg_of_the_right_size_is_only_decoded(monkeypatch):
    file = stored(noise(32, 32), "JPEG")
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    for name in ("resize", "crop", "convert", "copy", "transpose"):
        monkeypatch.setattr(Image.Image, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    assert torch.equal(read_picture(file, 32), expected)


def numbered(bad=(), count=8, **options):
    """A set whose picture i has i on the left and i + 100 on the right; the `bad` ones cannot be read."""

    def read(index):
        if index in bad:
            raise UnreadablePicture(f"cannot read the picture {index}: test. Take it out.")
        pixels = torch.full((1, 2, 2), index, dtype=torch.uint8)
        pixels[..., 1] += 100
        return pixels

    names = [str(i) for i in range(count)]
    return Pictures(read, range(count), names, names, **options)


def left(record):
    return round((record.image[0, 0, 0].item() + 1) * 127.5)


def test_the_next_takes_the_place_of_a_broken_one_which_is_said_once():
    data = numbered(bad=(2, 3, 7), broken="skip")
    with pytest.warns(UserWarning, match="picture 2: test.*The next one takes its place; others.*skipped") as said:
        records = [data[i] for i in range(8)]
    assert [left(r) for r in records] == [r.label for r in records] == [0, 1, 4, 4, 4, 5, 6, 0]
    assert [r.caption for r in records] == [str(r.label) for r in records]
    assert len(said) == 1 and data.skipped() == [2, 3, 7] and len(data) == 8


@pytest.mark.filterwarnings("ignore:cannot read")
def test_workers_replace_alike_and_are_counted():
    data = numbered(bad=(2, 3, 7), broken="skip")
    batches = [batch.label.tolist() for batch in torch.utils.data.DataLoader(data, batch_size=2, num_workers=2)]
    assert batches == [[0, 1], [4, 4], [4, 5], [6, 0]] and data.skipped() == [2, 3, 7]


def test_a_worker_names_what_it_cannot_read():
    loader = torch.utils.data.DataLoader(numbered(bad=(3,), broken="raise"), batch_size=2, num_workers=1)
    with pytest.raises(UnreadablePicture, match="picture 3: test. Take it out. Or go on without it: broken='skip'"):
        list(loader)
    with pytest.raises(UnreadablePicture, match="Take it out.$"):  # a set that has no such argument names none
        numbered(bad=(3,))[3]


@pytest.mark.filterwarnings("ignore:cannot read")
def test_a_disk_that_is_gone_ends_the_run():
    reads = []
    data = numbered(bad=range(1000), count=1000, broken="skip")
    inner, data.read = data.read, lambda i: reads.append(i) or inner(i)
    with pytest.raises(UnreadablePicture, match="100 pictures in a row cannot be read; is the disk still there.* 99"):
        data[0]
    assert len(reads) == 100
    with pytest.raises(UnreadablePicture, match="none of the 1000 pictures can be read"):
        data.in_memory()


def test_in_memory_leaves_broken_ones_out():
    with pytest.warns(UserWarning, match="picture 2: test.*It is left out"):
        data = numbered(bad=(2, 5), broken="skip", files=list("abcdefgh")).in_memory()
    assert data.labels.tolist() == [0, 1, 3, 4, 6, 7]
    assert data.captions == list("013467") and data.files == list("abdegh")
    assert [left(record) for record in data] == data.labels.tolist()
    with pytest.raises(UnreadablePicture, match="picture 2"):
        numbered(bad=(2, 5), broken="raise").in_memory()


def test_mirrored_pictures_follow_the_seed():
    data = numbered(count=64, flip=True)

    def seen(seed):
        torch.manual_seed(seed)
        return [left(data[i]) - i for i in range(64)]

    first = seen(0)
    assert set(first) == {0, 100} and 16 < first.count(100) < 48
    assert seen(0) == first and seen(1) != first
    before = torch.get_rng_state()
    assert [left(r) for r in numbered(count=3)] == [0, 1, 2] and torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="flip=True mirrors pictures as they are read; with in_memory=True leave it"):
        data.in_memory()


def test_good_pictures_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = numbered(broken="skip")
        assert [left(record) for record in data] == list(range(8)) and data.skipped() == []
