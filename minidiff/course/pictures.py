"""Pictures in figures and animations: grids, filmstrips and small looping films, each pixel a crisp square."""

import functools
import io
import textwrap

import numpy as np
import torch

from minidiff.course.style import DPI, quiet
from minidiff.images import mosaic, pixels

FILM_BYTES = 220_000  # an animation's size at most: 290 kB once a notebook has stored it as text


@quiet
def grid(images, columns=None, titles=None, scale=None):
    """Pictures in rows and columns, each pixel a crisp square.

    images: (N, C, H, W) or one (C, H, W) with C = 1 or 3, floats; values beyond [-1, 1] are clipped, NaN and infinities
    painted purple. columns: how many in a row (all of up to 8). titles: one string a picture, wrapped to its width.
    scale: screen pixels per pixel. Raises ValueError for other shapes, for integers and for a wrong number of titles.
    """
    cells = pixels(images)
    if titles is not None and len(titles) != len(cells):
        raise ValueError(f"{len(titles)} titles for {len(cells)} pictures: give one string each, or titles=None.")
    columns = min(len(cells), 8) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns={columns}; expected a whole number of at least 1, or None.")
    return _sheet(cells, columns, scale or _scale(cells, columns), titles=titles)


@quiet
def filmstrip(frames, times=None, rows=None, columns=10, scale=None):
    """Pictures on their way from noise to data: one row a picture, one column a time.

    frames: (T, N, C, H, W), or a list of T tensors (N, C, H, W); at most `columns` of them are shown, evenly chosen.
    times: T numbers (shown as t = 0.50) or strings. rows: how many pictures to show (at most 4 by default), or the
    names of all rows. Raises ValueError where the lengths disagree.
    """
    frames = stack_frames(frames)  # (T, N, C, H, W)
    if times is not None and len(times) != len(frames):
        raise ValueError(f"{len(times)} times for {len(frames)} frames: give one number or string each, or times=None.")
    names = None if rows is None or isinstance(rows, int) else list(rows)
    if names is not None and len(names) != frames.shape[1]:
        raise ValueError(f"{len(names)} row names for {frames.shape[1]} pictures a frame: give one each, or a number.")
    count = frames.shape[1] if names else min(rows or 4, frames.shape[1])
    chosen = pick(len(frames), columns)
    heads = None if times is None else [h if isinstance(h := times[i], str) else f"t = {float(h):.2f}" for i in chosen]
    cells = pixels(frames[chosen, :count].transpose(0, 1).flatten(0, 1))  # row by row
    return _sheet(cells, len(chosen), scale or _scale(cells, len(chosen)), heads=heads, names=names)


def _scale(cells, columns, width=880):
    """Screen pixels per pixel: a picture is about 76 high (128 where there are few), a row at most `width` wide."""
    height = 128 if columns <= 6 else 76
    return max(1, min(round(height / cells.shape[1]), (width - 4 * columns) // (columns * cells.shape[2])))


def _sheet(cells, columns, scale, titles=None, heads=None, names=None, line=15):
    """The figure of a mosaic of pictures (N, H, W, 3) with titles over each, heads over columns, names beside rows."""
    import matplotlib.pyplot as plt

    wide = cells.shape[2] * scale
    wrap = functools.partial(_wrap, width=max(6, int(wide / 7.2)))
    titles, heads = [wrap(str(x)) for x in titles or ()], [wrap(x) for x in heads or ()]
    above = line * max((x.count("\n") + 1 for x in titles), default=0)
    top = line * max((x.count("\n") + 1 for x in heads), default=0)
    left = 12 + int(7.4 * max((len(x) for x in names), default=0)) if names else 0
    canvas, corners = mosaic(cells, columns, scale, above=above, top=top, left=left)

    height, width = canvas.shape[:2]
    figure = plt.figure(figsize=(width / DPI, height / DPI), layout="none")  # one canvas pixel is one screen pixel
    axes = figure.add_axes([0, 0, 1, 1], xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.imshow(canvas, extent=(0, width, height, 0), aspect="auto")
    text = functools.partial(axes.text, fontsize=8.5, color="#222222", linespacing=1.1)
    for title, (x, y) in zip(titles, corners):
        text(x + wide / 2, y - 2, title, ha="center", va="bottom")
    for head, (x, y) in zip(heads, corners):
        text(x + wide / 2, y - 2, head, ha="center", va="bottom")
    for name, (x, y) in zip(names or (), corners[::columns]):
        text(x - 7, y + cells.shape[1] * scale / 2, name, ha="right", va="center")
    return figure


def _wrap(title, width):
    lines = textwrap.wrap(title, width) or [""]
    return "\n".join(lines[:3]) + ("…" if len(lines) > 3 else "")


def animation(frames, path=None, ms=60, columns=None, scale=None, hold=1500, alt="Pictures emerging from noise"):
    """A small looping film of pictures, shown as an IPython Image; it rests `hold` ms on its last frame.

    frames: (T, N, C, H, W) or a list of T tensors (N, C, H, W), in [-1, 1]; at most 40 are kept, evenly chosen.
    path: also write it there, in the format of its suffix: .png (animated PNG), .webp or .gif. ms: time a frame.

    In the notebook it is an animated PNG: only image/png and image/jpeg are shown by JupyterLab and also by nbconvert
    and GitHub (where an output of type image/webp or image/gif is a line of text), and with one palette it is
    also the smallest: eight pictures of 16 pixels in 30 frames are 105 kB, against 320 kB as WebP and 490 kB as GIF.
    """
    from IPython.display import Image

    frames = stack_frames(frames)
    frames = frames[pick(len(frames), 40)]
    count = frames.shape[1]
    columns = columns or min(count, 8)
    cells = pixels(frames.flatten(0, 1)).reshape(*frames.shape[:2], *frames.shape[3:], 3)
    scale = scale or min(_scale(cells[0], columns, width=680), max(1, round(80 / frames.shape[3])))
    canvases = [mosaic(c, columns, scale)[0] for c in cells]
    if path is not None:
        kind = str(path).rsplit(".", 1)[-1].lower()
        if kind not in ("png", "webp", "gif"):
            raise ValueError(f"path {str(path)!r} ends in {kind!r}; expected .png, .webp or .gif.")
        with open(path, "wb") as file:
            file.write(_film(canvases, {"png": "PNG", "webp": "WEBP", "gif": "GIF"}[kind], ms, hold, 5 * FILM_BYTES))
    return Image(data=_film(canvases, "PNG", ms, hold), format="png", alt=alt)


def _film(canvases, format, ms, hold, most=FILM_BYTES):
    """Encoded film of the canvases, with fewer colours and then fewer frames until it has at most `most` bytes."""
    from PIL import Image

    while True:
        last = [canvases[-1]] * 3  # the finished pictures get most of the palette
        sample = Image.fromarray(np.concatenate([canvases[0], canvases[len(canvases) // 2], *last]))
        for colours in (128, 64, 32):
            palette = sample.quantize(colours)
            films = [Image.fromarray(c).quantize(palette=palette, dither=Image.Dither.NONE) for c in canvases]
            films = [film.convert("RGB") for film in films] if format == "WEBP" else films
            durations = [ms] * (len(films) - 1) + [hold]
            file = io.BytesIO()
            first, rest, extra = films[0], films[1:], {"quality": 60} if format == "WEBP" else {}
            if format == "PNG":  # what does not play it (PDF, previews) shows the finished pictures, not the noise
                first, rest, extra = films[-1], films, {"default_image": True}
            first.save(file, format, save_all=True, append_images=rest, duration=durations, loop=0, **extra)
            if file.tell() <= most or len(canvases) <= 4 and colours == 32:
                return file.getvalue()
        canvases = [canvases[k] for k in pick(len(canvases), len(canvases) * 2 // 3)]


def pick(count, most):
    """Indices of at most `most` of `count` things, evenly spread, the first and the last among them."""
    return [round(k * (count - 1) / max(min(count, most) - 1, 1)) for k in range(min(count, most))]


def stack_frames(frames):
    """(T, N, C, H, W) from that or from a list of T tensors (N, C, H, W)."""
    frames = torch.stack([torch.as_tensor(f).detach().cpu() for f in frames])
    if frames.ndim != 5:
        raise ValueError(f"frames have shape {tuple(frames.shape)}; expected (T, N, C, H, W), or a list of T tensors "
                         "(N, C, H, W). For one picture over time write [x[None] for x in frames].")
    return frames
