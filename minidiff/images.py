"""Pictures as bytes: a batch as one sheet, and as a file."""

import io
from pathlib import Path

import numpy as np
import torch

from minidiff.safe_files import write_bytes


def pixels(images):
    """Bytes (N, H, W, 3) of images (N, C, H, W), (C, H, W) or a list of (C, H, W), floats in [-1, 1]."""
    images = torch.stack(list(images)) if isinstance(images, (list, tuple)) else torch.as_tensor(images)
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (N, C, H, W) or (C, H, W) with C = 1 or "
                         "3. Write images[:, None] for (N, H, W), images.permute(0, 3, 1, 2) for (N, H, W, C).")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; expected floats in [-1, 1]: write images / 127.5 - 1 for bytes.")
    images = images.detach().float().cpu()
    broken = ~images.isfinite().all(1)  # (N, H, W)
    shown = ((images.nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    shown = shown.permute(0, 2, 3, 1).contiguous()
    shown[broken] = torch.tensor([204, 121, 167], dtype=torch.uint8)  # PURPLE
    return shown.numpy()


def mosaic(cells, columns, scale, above=0, top=0, left=0, gap=4):
    """One white canvas with the pictures (N, H, W, 3) enlarged `scale` times, and the (x, y) corner of each picture.

    Free pixels: `above` each picture, `top` over all, `left` of all.
    """
    tall, wide = cells.shape[1] * scale, cells.shape[2] * scale
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    corners = [(left + (wide + gap) * (k % columns), top + above + (tall + above + gap) * (k // columns))
               for k in range(len(cells))]
    canvas = np.full((top + rows * (tall + above + gap) - gap, left + columns * (wide + gap) - gap, 3), 255, np.uint8)
    for cell, (x, y) in zip(cells, corners):
        canvas[y : y + tall, x : x + wide] = cell.repeat(scale, 0).repeat(scale, 1)
    return canvas, corners


def save_grid(images, path, columns=None, scale=None):
    """Write images (N, C, H, W) or (C, H, W), floats in [-1, 1], C = 1 or 3, as one sheet to a .png file, atomically.

    columns: how many in a row, about square by default; scale: pixels of the file for one of a picture (about 64 in
    all by default). Returns the path. Raises ValueError for other shapes and for integers.
    """
    from PIL import Image

    cells = pixels(images)
    columns = columns or max(1, round(len(cells) ** 0.5))
    canvas, _ = mosaic(cells, columns, scale or max(1, round(64 / cells.shape[1])))
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG")
    write_bytes(path, file.getvalue())
    return Path(path)
