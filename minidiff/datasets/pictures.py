"""Picture files: opened whatever their mode, cropped to the middle square, resized without aliasing.

A file that cannot be read is an `UnreadablePicture` that says what the file is and the way out; `Pictures` can put
another one in its place, so that one broken file does not end a long run.
"""

import os
import warnings

import numpy as np
import torch

from minidiff.datasets.record import InMemory, Record, to_float
from minidiff.datasets.unreadable import UnreadablePicture, has_heic, reason, shown

HOW = ("lanczos", "adm")
# How much larger than wanted the short side of a jpg must stay when libjpeg shrinks it while decoding. On photographs
# the result is then about one grey level (root mean square) from that of the full picture; at 1 it is up to six.
DRAFT = 2
# EXIF's eight orientations, as the name of the turn that sets the picture upright.
UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
           7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip


def open_picture(file, name=None):
    """The picture in `file`, a path or a binary file such as io.BytesIO, as a PIL image: RGB on white, upright.

    The first frame of an animation. `name` is what messages call a file in memory. UnreadablePicture, a ValueError,
    for whatever cannot be read.
    """
    return attempt(file, name, as_rgb)


def open_header(file, name=None):
    """The (width, height) of the picture in `file`; errors as `open_picture`, but the pixels are not decoded."""
    return attempt(file, name, lambda picture: picture.size)


def read_picture(file, size, channels=3, how="lanczos", name=None):
    """`square(open_picture(file), size, channels, how)`, the quick way: uint8 (channels, size, size).

    A large jpg is shrunk by 2, 4 or 8 while it is decoded, except for `how="adm"`.
    """
    return attempt(file, name, lambda picture: shrunk(picture, size, channels, how))


def shrunk(picture, size, channels, how):
    extent = draft(picture, size) if how == "lanczos" else None
    return square(as_rgb(picture), size, channels, how, extent)


def attempt(file, name, use):
    """use(picture) of an opened file; any exception that its bytes can cause becomes an UnreadablePicture."""
    from PIL import Image

    try:
        try:
            picture = Image.open(file)
        except Image.UnidentifiedImageError:
            if not has_heic(file):
                raise
            picture = Image.open(file)
        with picture:
            return use(picture)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds, struct.error and zlib.error among them
        name = shown(file) if name is None and isinstance(file, str | os.PathLike) else name or "in memory"
        raise UnreadablePicture(f"cannot read the picture {name}: {reason(file, error)}.") from error


def orientation(picture):
    """EXIF's orientation, 1 (upright) to 8; 1 if there is none or it cannot be read."""
    try:
        return picture.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF data says nothing against the pixels
        return 1


def draft(picture, size):
    """Have libjpeg shrink this jpg while decoding; its (width, height) then, in fractions of pixels, else None.

    The last column and row of the shrunk picture may stand for less than a whole pixel. Cropping by whole pixels would
    shift everything: an error five times that of the shrinking itself.
    """
    width, height = picture.size
    if picture.format != "JPEG" or min(width, height) < 2 * DRAFT * size:
        return None
    if (width % 8 or height % 8) and orientation(picture) != 1:
        return None  # the incomplete column may come first when it is turned
    picture.draft("RGB", (DRAFT * size, DRAFT * size))
    scale = round(width / picture.size[0])
    return width / scale, height / scale


def as_rgb(picture):
    """A PIL image of any mode as RGB: transparency on white, 16-bit grey scaled to 8 bits, EXIF rotation applied."""
    from PIL import Image

    picture.load()  # Pillow turns a tif upright while loading, and must not be asked before
    turn = UPRIGHT.get(orientation(picture))
    if turn:
        picture = picture.transpose(Image.Transpose[turn])
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = eight_bits(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        picture = white
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def eight_bits(picture):
    """Grey of 16 or 32 bits or in floats as 8-bit grey.

    16 bits are divided by 257, however dark the picture. Where the mode does not tell the range ("I" and "F", which tif
    files have) the values do: up to 1 (floats only), up to 255, or up to 65535.
    """
    from PIL import Image

    values = np.asarray(picture, dtype=np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # so that NaN is refused, too
        raise ValueError(f"its values reach from {low:g} to {high:g}, expected 0 to 1, 255 or 65535; save it in 8 bits")
    sixteen = picture.mode.startswith("I;16") or getattr(picture, "format", None) in ("PNG", "PPM") or high > 255
    white = 65535 if sixteen else 1 if picture.mode == "F" and high <= 1 else 255
    transparent = picture.info.get("transparency")
    if sixteen and isinstance(transparent, int):
        values[values == transparent] = white
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def square(picture, size, channels=3, how="lanczos", extent=None):
    """The middle square of a PIL image, uint8 (channels, size, size).

    `how` "lanczos" crops, then resizes with a Lanczos filter. "adm" is the way of ADM, which DiT and others took over
    (the code of Dhariwal and Nichol 2021): halved with a box filter while the short side is at least twice `size`, then
    bicubic, then cropped. `extent` is the width and height in fractions of pixels where they are no whole number.
    """
    from PIL import Image

    if how == "adm":
        picture = adm_square(picture, size)
    else:
        width, height = extent or picture.size
        side = min(width, height)
        if extent:
            left, top = (width - side) / 2, (height - side) / 2
            picture = picture.resize((size, size), Image.LANCZOS, box=(left, top, left + side, top + side))
        else:
            left, top = (width - side) // 2, (height - side) // 2
            if width != height:
                picture = picture.crop((left, top, left + side, top + side))
            if side != size:
                picture = picture.resize((size, size), Image.LANCZOS)
    mode = "L" if channels == 1 else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    planes = bytearray(b"".join(plane.tobytes() for plane in picture.split()))  # half the time of a transposed array
    return torch.frombuffer(planes, dtype=torch.uint8).view(channels, size, size)


def adm_square(picture, size):
    from PIL import Image

    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.size[0] // 2, picture.size[1] // 2), Image.BOX)
    scale = size / min(picture.size)
    if max(picture.size) > 100 * min(picture.size):  # enlarged as a whole before the crop, it might fill the memory
        raise ValueError(f"it is {picture.size[0]} x {picture.size[1]} pixels: too long and thin for how='adm'")
    picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.BICUBIC)
    left, top = ((side - size) // 2 for side in picture.size)
    return picture.crop((left, top, left + size, top + size))


class Pictures(torch.utils.data.Dataset):
    """A finite data set that reads a picture when it is asked for: `read(i)` gives uint8 (C, H, W).

    `.labels` int64 (N,), `.captions` list of N, `.classes`. There is no `.images()`; `in_memory()` reads everything
    once and gives an `InMemory` set, which has. `flip=True` mirrors every other picture at random, by torch's global
    random numbers: repeatable where these are seeded. `broken="skip"` gives the next picture that can be read, with its
    own label and caption, in the place of one that cannot; "raise" an UnreadablePicture.
    """

    def __init__(self, read, labels, captions, classes, *, flip=False, broken=None, **extras):
        self.read, self.captions, self.classes = read, list(captions), list(classes)
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.flip, self.broken, self.extras = flip, broken, extras
        # Shared, so that what the workers of a DataLoader meet is counted here.
        self._met = torch.zeros(len(self.labels), dtype=torch.bool).share_memory_() if broken == "skip" else None
        for name, value in extras.items():
            setattr(self, name, value)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        index = range(len(self))[index]  # IndexError at the end, negative indices from it
        pixels, index = self._readable(index)
        if self.flip and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        return Record(to_float(pixels), int(self.labels[index]), self.captions[index])

    def skipped(self):
        """The numbers of the pictures that could not be read so far, in this process or in a worker."""
        return [] if self._met is None else self._met.nonzero().flatten().tolist()

    def in_memory(self):
        """The same set, read once and kept as uint8; with `broken="skip"` without the pictures that cannot be read."""
        if self.flip:
            raise ValueError("flip=True mirrors pictures as they are read; with in_memory=True leave it out.")
        kept, pictures = [], []
        for index in range(len(self)):
            try:
                pictures.append(self._read(index))
                kept.append(index)
            except UnreadablePicture as error:
                if self.broken != "skip":
                    raise
                self._meet(index, error, "It is left out")
        if not kept:
            raise UnreadablePicture(f"none of the {len(self)} pictures can be read; take broken='raise' to see why.")
        extras = {key: [value[i] for i in kept] if key == "files" else value for key, value in self.extras.items()}
        captions = [self.captions[index] for index in kept]
        return InMemory(torch.stack(pictures), self.labels[kept], captions, self.classes, **extras)

    def _read(self, index):
        try:
            return self.read(index)
        except UnreadablePicture as error:
            if self.broken != "raise":
                raise
            raise UnreadablePicture(f"{error} Or go on without it: broken='skip'.") from error

    def _readable(self, index):
        """Picture `index`, or the next that can be read, and its number: the same one in every run and worker."""
        if self.broken != "skip":
            return self._read(index), index
        for offset in range(min(100, len(self))):  # a hundred in a row: no broken file but a disk that is gone
            number = (index + offset) % len(self)
            try:
                return self.read(number), number
            except UnreadablePicture as error:
                problem = error
                self._meet(number, error, "The next one takes its place")
        raise UnreadablePicture(f"{offset + 1} pictures in a row cannot be read; is the disk still there? {problem}")

    def _meet(self, index, error, what):
        first = not self._met.any()
        self._met[index] = True
        if first:
            warnings.warn(f"{error} {what}; others like it will not be named, .skipped() has them all.", stacklevel=4)
