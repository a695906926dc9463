"""Picture files: opened whatever their mode, cropped to the middle square, resized without aliasing."""

import numpy as np
import torch

from minidiff.datasets.record import InMemory, Record, to_float


def open_picture(path):
    """The picture as RGB on white, turned upright. ValueError that names a file which is broken or no picture."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            return as_rgb(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        raise ValueError(f"cannot read the picture {path}: {error}. Repair it or take it out of the folder.") from error


def as_rgb(picture):
    """A PIL image of any mode as RGB: transparency on white, 16-bit grey scaled to 8 bits, EXIF rotation applied."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        scale = 1 if values.max(initial=0) <= 255 else 65535 / 255
        picture = Image.fromarray((values / scale).clip(0, 255).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        picture = white
    return picture.convert("RGB")


def square(picture, size, channels=3):
    """The middle square of a PIL image, resized with a Lanczos filter, uint8 (channels, size, size)."""
    from PIL import Image

    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if side != size:
        picture = picture.resize((size, size), Image.LANCZOS)
    array = np.array(picture.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array.reshape(size, size, channels)).permute(2, 0, 1).contiguous()


class Pictures(torch.utils.data.Dataset):
    """A finite data set that reads a picture when it is asked for: `read(i)` gives uint8 (C, H, W).

    `.labels` int64 (N,), `.captions` list of N, `.classes`. There is no `.images()`; `in_memory()` reads everything
    once and gives an `InMemory` set, which has.
    """

    def __init__(self, read, labels, captions, classes, **extras):
        self.read, self.captions, self.classes = read, list(captions), list(classes)
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.extras = extras
        for name, value in extras.items():
            setattr(self, name, value)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        index = range(len(self))[index]  # IndexError at the end, negative indices from it
        return Record(to_float(self.read(index)), int(self.labels[index]), self.captions[index])

    def in_memory(self):
        """The same set, read once and kept as uint8."""
        pictures = torch.stack([self.read(i) for i in range(len(self))])
        return InMemory(pictures, self.labels, self.captions, self.classes, **self.extras)
