"""Shards written and cached: round trips, kills, a full disk."""

import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from shard_files import SIZE, load, make_shards, make_tar, sample, take

from minidiff import Text
from minidiff.datasets import Record, cache_shards, write_shards
from minidiff.datasets.shard_reading import index
from minidiff.text import collate_texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """48 samples in 8 shards."""
    return make_shards(tmp_path_factory.mktemp("shards") / "set")


def test_write_and_read_back(tmp_path):
    records = [Record(torch.full((3, SIZE, SIZE), n / 127.5 - 1), n % 3, f"picture {n}") for n in range(10)]
    tars = write_shards(records, tmp_path / "a", per_shard=4, format="png")
    assert [tar.name for tar in tars] == ["00000.tar", "00001.tar", "00002.tar"]
    back = list(load(tmp_path / "a", label="label"))
    assert len(back) == 10
    for one, two in zip(records, back, strict=True):
        assert (one.image - two.image).abs().max() < 1e-6 and one[1:] == two[1:]
    before = [tar.read_bytes() for tar in tars]
    assert write_shards(records, tmp_path / "a", per_shard=4, format="png") == tars
    assert [tar.read_bytes() for tar in tars] == before
    mixed = ((Image.new("L", (20, 10), n), f"picture {n}", {"width": n}) for n in range(3))
    write_shards(mixed, tmp_path / "b")
    with pytest.warns(UserWarning, match="2 samples read, 1 skipped .1 not kept"):
        back = list(load(tmp_path / "b", keep=lambda about: about["width"]))
    assert [int((record.image.mean() + 1) * 127.5 + 0.5) for record in back] == [1, 2]


def test_shards_of_another_making_are_not_touched(folder, tmp_path):
    records = [Record(torch.zeros(3, SIZE, SIZE), 0, "x")] * 4
    write_shards(records, tmp_path, per_shard=2)
    with pytest.raises(ValueError, match="was written with .*'per_shard': 2.*now .*'per_shard': 3"):
        write_shards(records, tmp_path, per_shard=3)
    with pytest.raises(ValueError, match="00000.tar was not written here"):
        write_shards(records, folder)
    with pytest.raises(ValueError, match=r"shape \(4, 8, 8\)"):
        write_shards([Record(torch.zeros(4, 8, 8), 0, "x")], tmp_path / "c")
    assert not list((tmp_path / "c").iterdir()), "nothing broken is left"


WRITER = """
import sys, time, torch
from minidiff.datasets import Record, cache_shards, write_shards
records = [Record(torch.full((3, 8, 8), n / 127.5 - 1), n, f"picture {n}") for n in range(40)]
def slow():
    for record in records:
        time.sleep(0.02)
        yield record
def encode(images):
    time.sleep(0.1)
    return images[:, :, ::2, ::2]
if sys.argv[2] == "write":
    write_shards(slow(), sys.argv[1], per_shard=4, format="png")
else:
    cache_shards(records, sys.argv[1], encode_images=encode, per_shard=4, batch_size=3, progress=False)
"""


@pytest.mark.parametrize("task", ["write", "cache"])
def test_a_killed_writer_leaves_no_broken_shard_and_goes_on(tmp_path, task):
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    command = [sys.executable, "-c", WRITER, str(broken), task]
    process = subprocess.Popen(command)
    while len(list(broken.glob("*.tar"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {tar: tar.stat().st_mtime_ns for tar in sorted(broken.glob("*.tar"))}
    assert 3 <= len(kept) < 10
    for tar in kept:
        with open(tar, "rb") as file:
            table, truncated = index(file)
        assert len(table) == 4 and not truncated
    for target in (broken, unbroken):
        subprocess.run([*command[:3], str(target), task], check=True)
    assert all(tar.stat().st_mtime_ns == written for tar, written in kept.items()), "finished shards are kept"
    files = {file.name: file.read_bytes() for file in unbroken.iterdir()}
    assert len(files) == 20 and {file.name: file.read_bytes() for file in broken.iterdir()} == files


def halved(images):
    return torch.nn.functional.avg_pool2d(images, 2)


def words(captions):
    """A text encoder: as many tokens as the number of a caption modulo 5, and one."""
    lengths = torch.tensor([int(caption.split()[1]) % 5 + 1 for caption in captions])
    tokens = torch.arange(6.0)[None, :, None] + lengths[:, None, None].expand(-1, 6, 7)
    return Text(tokens, torch.arange(6) < lengths[:, None], lengths[:, None] * torch.ones(3))


@pytest.mark.parametrize("of_shards", [True, False])
def test_cached_latents_and_texts_come_back(folder, tmp_path, of_shards):
    source = load(folder, label="class")
    tars = cache_shards(source if of_shards else list(source), tmp_path / "cache", encode_images=halved,
                        encode_text=words, batch_size=5, per_shard=12, progress=False)  # fmt: skip
    assert len(tars) == 4
    with tarfile.open(tars[0]) as tar:
        endings = [name.split(".", 1)[1] for name in tar.getnames()[:5]]
    assert endings == ["txt", "json", "latent.npy", "tokens.npy", "pooled.npy"]
    cached = load(tmp_path / "cache", label="label")
    for one, two in zip(source, cached, strict=True):
        number = int(one.caption.split()[1])
        assert two.image.dtype == torch.float32 and torch.equal(two.image, halved(one.image).half().float())
        assert two.caption.tokens.shape == (number % 5 + 1, 7) and two.caption.mask is None and two.label == one.label
        assert torch.equal(two.caption.pooled, torch.full((3,), number % 5 + 1.0))
    for workers in (0, 1):
        (images, labels, captions), position = take(cached, 1, workers=workers)[0]
        assert images.dtype == torch.float32 and images.shape == (8, 3, SIZE // 2, SIZE // 2)
        assert all(isinstance(caption, Text) and caption.tokens.ndim == 2 for caption in captions)
    again = cache_shards(cached, tmp_path / "again", per_shard=50, progress=False)  # one larger shard
    for one, two in zip(cached, load(tmp_path / "again", label="label"), strict=True):
        assert torch.equal(one.image, two.image) and torch.equal(one.caption.tokens, two.caption.tokens)
    assert len(again) == 1
    with pytest.raises(ValueError, match="flip=True"):
        take(load(tmp_path / "cache", flip=True), 1)
    with pytest.raises(ValueError, match="hold latents already"):
        cache_shards(cached, tmp_path / "third", encode_images=halved, progress=False)


def test_only_texts_or_only_latents(folder, tmp_path):
    cache_shards(load(folder), tmp_path / "texts", encode_text=lambda captions: torch.ones(len(captions), 4, 2),
                 progress=False)  # fmt: skip
    for one, two in zip(load(folder), load(tmp_path / "texts"), strict=True):
        assert torch.equal(one.image, two.image) and two.caption.tokens.shape == (4, 2) and two.caption.pooled is None
    cache_shards(load(folder), tmp_path / "latents", encode_images=halved, progress=False)
    assert [r.caption for r in load(tmp_path / "latents")] == [r.caption for r in load(folder)]


def test_half_a_character_does_not_stop_a_long_run(tmp_path):
    """JSON can hold half of an emoji, where a caption was cut; UTF-8 cannot."""
    make_tar(tmp_path / "a.tar", {str(n): sample(n, txt=None, json=b'{"caption": "a cat \\ud83d"}') for n in range(2)})
    assert [record.caption for record in load(tmp_path / "a.tar")] == ["a cat ?"] * 2
    cache_shards(load(tmp_path / "a.tar"), tmp_path / "b", progress=False,
                 encode_text=lambda captions: torch.ones(len(captions), 4, 2))  # fmt: skip
    records = [Record(torch.zeros(3, SIZE, SIZE), 0, "a cat \ud83d")]
    write_shards(records, tmp_path / "c")
    assert [record.caption for record in load(tmp_path / "c")] == ["a cat ?"]


def test_captions_that_say_nothing(folder, tmp_path):
    """No token is kept of an empty caption, and it comes back as a text without any."""
    def encode(captions):
        mask = torch.tensor([[caption == "picture 1"] * 2 for caption in captions])
        return Text(torch.ones(len(captions), 2, 7), mask, torch.ones(len(captions), 3))

    cache_shards(load(folder), tmp_path, encode_text=encode, progress=False)
    (_, _, captions), _ = take(load(tmp_path), 1)[0]
    text = collate_texts(captions)
    assert text.tokens.shape == (8, 16 if text.mask.any() else 1, 7) and not text.tokens[~text.mask].any()
    assert [len(record.caption.tokens) for record in load(tmp_path)][:3] == [0, 2, 0]


def test_bad_encoders_are_told(folder, tmp_path):
    for encode, error in ((lambda x: x * 1e5, FloatingPointError), (lambda x: x[0], ValueError)):
        with pytest.raises(error, match="float16 ends|expected latents"):
            cache_shards(load(folder), tmp_path / "a", encode_images=encode, progress=False)
    with pytest.raises(ValueError, match=r"tokens \(1, 2, 3\) for 48 captions"):
        cache_shards(load(folder), tmp_path / "a", encode_text=lambda c: torch.ones(1, 2, 3), progress=False)


def test_pictures_and_latents_are_not_mixed(folder, tmp_path):
    cache_shards(load(folder), tmp_path, encode_images=halved, progress=False)
    with pytest.raises(ValueError, match="several kinds in one batch"):
        take(load([folder, tmp_path], need_caption=False, lanes=1), 60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_told_and_finished_shards_are_kept(tmp_path, monkeypatch):
    records = [Record(torch.zeros(3, SIZE, SIZE), 0, "x")] * 6
    write_shards(records[:2], tmp_path, per_shard=2)
    opened = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda name, *a, **k: opened("/dev/full", *a, **k))
    with pytest.raises(OSError, match="1 shards are whole and kept"):
        write_shards(records, tmp_path, per_shard=2)
    monkeypatch.undo()
    assert len(write_shards(records, tmp_path, per_shard=2)) == 3
