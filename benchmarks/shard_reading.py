"""How fast captioned shards are read on one core: `python benchmarks/shard_reading.py`.

Makes 1,000 jpgs of 256 pixels, quality 95, with caption and metadata, once in eight tars and once as loose files, in a
temporary folder that the cache of the system holds: what is measured is the work of the processor, not the disk. The
pictures are noise with the spectrum of photographs (amplitude 1/f), correlated between the colours, over a few edges.

    shards   `load_dataset("shards", ...).stream(64, seed=0)` in this process: shuffled, filtered, with its position
    loose    a loop of PIL over the loose files in shuffled order: open, resize if need be, read the caption and the
             metadata, stack 64 pictures to a uint8 tensor (B, 3, H, W)

Both decode all pictures once in a round, at 256 pixels as they are and at 64, where `shards` decodes the jpg at half
its size and then resizes with a Lanczos filter, and the plain loop resizes all of it with the same filter. The two
alternate, and the order turns in every round; processor time, medians over the rounds; the ratio is that of loose over
shards within a round.

Writes benchmarks/shard_reading.json.
"""

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from sampler_overhead import machine

from minidiff.datasets import load_dataset, write_shards

SIDE, BATCH, SHARDS, TARGET = 256, 64, 8, 300  # images a second and core


def photograph(generator):
    """A PIL image (SIDE, SIDE) with the spectrum of a photograph and some edges."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.rfftfreq(SIDE), indexing="ij"))
    frequency[0, 0] = 1
    waves = np.fft.rfft2(generator.standard_normal((4, SIDE, SIDE))) / frequency
    grey, *colours = np.fft.irfft2(waves, s=(SIDE, SIDE))
    picture = grey[..., None] + 0.3 * np.stack(colours, -1)
    picture *= 35 / picture.std()
    for _ in range(4):
        x, y = np.sort(generator.integers(0, SIDE, (2, 2)))
        picture[y[0]:y[1], x[0]:x[1]] += generator.normal(0, 40, 3)
    return Image.fromarray((picture + 128).clip(0, 255).astype(np.uint8))


def make(folder, count):
    """The pictures as FOLDER/shards/*.tar and FOLDER/loose/*; returns the mean size of a jpg in bytes."""
    generator, loose, sizes = np.random.default_rng(0), folder / "loose", []
    loose.mkdir()

    def records():
        for number in range(count):
            caption = f"a picture made of noise, the {number}th of {count}"
            about = {"caption": caption, "url": f"https://example.org/{number}.jpg", "key": f"{number:09}",
                     "status": "success", "width": SIDE, "height": SIDE, "original_width": 800, "exif": "{}",
                     "original_height": 600, "similarity": 0.31, "aesthetic": 5.2, "sha256": "0" * 64}  # fmt: skip
            picture, buffer = photograph(generator), io.BytesIO()
            picture.save(buffer, "jpeg", quality=95)
            sizes.append(len(buffer.getvalue()))
            (loose / f"{number:09}.jpg").write_bytes(buffer.getvalue())
            (loose / f"{number:09}.txt").write_text(caption, encoding="utf-8")
            (loose / f"{number:09}.json").write_text(json.dumps(about), encoding="utf-8")
            yield picture, caption, about

    write_shards(records(), folder / "shards", per_shard=-(-count // SHARDS))
    return statistics.mean(sizes)


def shards(folder, size, count):
    """A function that reads `count` samples of the stream, from its start."""
    data = load_dataset("shards", path=folder / "shards", size=size, keep=lambda about: about["aesthetic"] > 5,
                        min_side=SIDE, max_aspect=2)  # fmt: skip

    def run():
        stream = data.stream(BATCH, seed=0)
        for _ in range(count // BATCH):
            (images, _, captions), _ = next(stream)
        return images, captions

    return run


def loose(folder, size, count):
    """The plain loop."""
    order = np.random.default_rng(0).permutation(count)[:count // BATCH * BATCH].reshape(-1, BATCH)

    def run():
        for numbers in order:
            images, captions = [], []
            for number in numbers:
                name = folder / "loose" / f"{number:09}.jpg"
                picture = Image.open(name).convert("RGB")
                if picture.size != (size, size):
                    picture = picture.resize((size, size), Image.LANCZOS)
                images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
                captions.append(name.with_suffix(".txt").read_text(encoding="utf-8"))
                json.loads(name.with_suffix(".json").read_text(encoding="utf-8"))
            images = torch.stack(images).contiguous()
        return images, captions

    return run


def measure(folder, count, repeats):
    """Rows of images a second of both sides, for both sizes."""
    rows = []
    for size in (SIDE, 64):
        sides = {"shards": shards(folder, size, count), "loose": loose(folder, size, count)}
        seconds = {name: [] for name in sides}
        for run in sides.values():
            images, captions = run()  # warm; and both give the same kind of batch
            assert images.shape == (BATCH, 3, size, size) and images.dtype == torch.uint8 and len(captions) == BATCH
        for i in range(repeats):
            for name in list(sides)[::-1 if i % 2 else 1]:
                begin = time.process_time()
                sides[name]()
                seconds[name].append(time.process_time() - begin)
        read = count // BATCH * BATCH
        rates = {name: round(read / statistics.median(times)) for name, times in seconds.items()}
        ratio = statistics.median(b / a for a, b in zip(seconds["shards"], seconds["loose"]))
        rows.append({"size": size, **{f"{name}_images_per_second": rate for name, rate in rates.items()},
                     "ratio": round(ratio, 3), "target": TARGET})  # fmt: skip
    return rows


def main(arguments=None, out=__file__):
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--count", type=int, default=1000, help="pictures")
    arguments = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        mean = make(Path(folder), arguments.count)
        rows = measure(Path(folder), arguments.count, arguments.repeats)
    about = {
        "date": time.strftime("%Y-%m-%d"), "machine": machine(), "threads": 1, "python": platform.python_version(),
        "torch": torch.__version__, "pillow": version("pillow"), "minidiff": version("minidiff"),
        "pictures": arguments.count, "jpg_bytes": round(mean), "batch": BATCH, "repeats": arguments.repeats,
        "clock": "processor time, median",
    }  # fmt: skip
    for row in rows:
        print(row)
    Path(out).with_suffix(".json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
