"""Shards of captioned pictures: order, lanes, resumption, what is skipped, writing and caching."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff import Text, load_dataset
from minidiff.datasets import Record, cache_shards, shard_reading, write_shards
from minidiff.datasets.shard_reading import Shard, braces, index

SIZE = 8


def encoded(array, kind="png"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def picture(number, kind="png"):
    """A grey RGB picture that tells its number, with a white left edge that tells a flip."""
    array = np.full((SIZE, SIZE, 3), number, np.uint8)
    array[:, 0] = 255
    return encoded(array, kind)


def sample(number, **changes):
    """The members of a sample as img2dataset writes it; None leaves one out."""
    about = {"caption": f"picture {number}", "width": 100 + number, "class": number % 3}
    members = {"png": picture(number), "txt": f"picture {number}".encode(), "json": json.dumps(about).encode()}
    return {ending: data for ending, data in (members | changes).items() if data is not None}


def make_tar(path, samples, mtime=1.5):
    """A tar of {key: {ending: bytes}}; a fractional time brings the extended headers that webdataset writes."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for ending, data in members.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size, member.mtime = len(data), mtime
                tar.addfile(member, io.BytesIO(data))
    return path


def make_shards(folder, shards=8, each=6):
    folder.mkdir(exist_ok=True)
    for i in range(shards):
        numbers = range(i * each, (i + 1) * each)
        make_tar(folder / f"{i:05}.tar", {f"{n:09}": sample(n) for n in numbers})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """48 samples in 8 shards."""
    return make_shards(tmp_path_factory.mktemp("shards") / "set")


def load(path, **options):
    return load_dataset("shards", path=path, size=SIZE, **options)


def numbers(batch):
    return [int(caption.split()[1]) for caption in batch[2]]


def take(data, steps, batch_size=8, seed=0, **options):
    stream = data.stream(batch_size, seed, **options)
    result = list(itertools.islice(stream, steps))
    stream.close()
    return result


def joined(data, steps, world, position=None, **options):
    """(images, labels, captions) of all ranks joined, and their positions joined, for each step."""
    parts = [take(data, steps, rank=rank, world=world, position=position, **options) for rank in range(world)]
    for ranks in zip(*parts):
        position = {}
        for _, of_rank in ranks:
            position |= json.loads(json.dumps(of_rank))
        images, labels, captions = zip(*(batch for batch, _ in ranks))
        yield (torch.cat(images), torch.cat(labels), list(itertools.chain(*captions))), position


def same(one, two):
    return torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) and one[2] == two[2]


def test_batches_have_the_form_of_the_contract(folder):
    (images, labels, captions), position = take(load(folder, label="class"), 1)[0]
    assert images.shape == (8, 3, SIZE, SIZE) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert images[:, 0, 0, 3].tolist() == numbers((images, labels, captions)), "a picture and its caption"
    assert labels.tolist() == [number % 3 for number in images[:, 0, 0, 3].tolist()]
    assert json.loads(json.dumps(position)) == position
    assert take(load(folder), 1)[0][0][1].tolist() == [0] * 8 and load(folder).classes == ["shards"]


def test_each_sample_once_an_epoch_in_another_order(folder):
    data = load(folder)
    epochs = [[n for batch, _ in take(data, 12)[6 * e:6 * e + 6] for n in numbers(batch)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(48))
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])
    assert [n for batch, _ in take(data, 6, seed=1) for n in numbers(batch)] != epochs[0]
    assert len({n // 6 for n in epochs[0][:8]}) == 8, "a batch comes from all eight shards"


def test_fewer_lanes_and_uneven_shards_still_give_each_sample_once(tmp_path):
    data = load(make_shards(tmp_path / "set", shards=5, each=4), lanes=1)
    assert sorted(n for batch, _ in take(data, 5, batch_size=4) for n in numbers(batch)) == list(range(20))


@pytest.mark.parametrize("world, workers", [(2, 0), (4, 0), (8, 0), (1, 2), (2, 3)])
def test_the_same_batches_for_any_world_and_workers(folder, world, workers):
    data = load(folder, flip=True)
    whole = take(data, 8)
    parts = list(joined(data, 8, world, workers=workers))
    for (one, place), (two, place_of_ranks) in zip(whole, parts, strict=True):
        assert same(one, two) and place == place_of_ranks


@pytest.mark.parametrize("world, workers, then, later", [(1, 0, 1, 2), (2, 0, 4, 0), (1, 2, 2, 0)])
def test_resumption_is_exact_from_every_step(folder, world, workers, then, later):
    data = load(folder, flip=True)
    unbroken = [batch for batch, _ in take(data, 9)]
    before = list(joined(data, 8, world, workers=workers))
    for step in range(1, 8) if later == 0 and workers == 0 else (3,):
        (after, _), *_ = joined(data, 1, then, position=before[step - 1][1], workers=later)
        assert same(after, unbroken[step]), f"after {step} steps"


def test_resumption_touches_only_the_open_shards(folder, monkeypatch):
    data = load(folder, lanes=2)
    position = take(data, 9)[-1][1]
    opened = []
    monkeypatch.setattr("minidiff.datasets.shards.Shard", lambda path: opened.append(path) or Shard(path))
    take(data, 1, position=position)
    assert len(opened) <= 4  # one a lane, or two where it steps into the next


def test_a_position_of_another_stream_is_refused(folder, tmp_path):
    position = take(load(folder), 1)[0][1]
    other = load(make_shards(tmp_path / "set", shards=9))
    for data, options in ((other, {}), (load(folder), {"seed": 1}), (load(folder), {"batch_size": 12})):
        with pytest.raises(ValueError, match="data set 'shards': .*(position is not|lanes for batch_size=12)"):
            take(data, 1, position=position, **options)
    with pytest.raises(ValueError, match="positions of all ranks joined"):
        take(load(folder), 1, position=take(load(folder), 1, rank=0, world=2)[0][1])


def test_lanes_that_do_not_fit_are_refused_with_a_way_out(folder):
    with pytest.raises(ValueError, match=r"6 lanes for batch_size=12 on 4 processes.*Give lanes=4"):
        load(folder).stream(12, 0, world=4)
    assert len(take(load(folder, lanes=4), 1, batch_size=12, world=4)[0][0][2]) == 3
    with pytest.raises(ValueError, match="fewer processes"):
        load(folder).stream(16, 0, world=16)
    with pytest.raises(ValueError, match="rank=2 of world=2"):
        load(folder).stream(8, 0, rank=2, world=2)


def test_flips_are_half_of_all_and_new_in_each_epoch(folder):
    batches = [batch for batch, _ in take(load(folder, flip=True), 12)]
    flipped = [{n for b in part for n, image in zip(numbers(b), b[0]) if image[0, 0, 0] != 255} for part in
               (batches[:6], batches[6:])]  # fmt: skip
    assert all(12 < len(part) < 36 for part in flipped) and flipped[0] != flipped[1]
    assert all(image[0, 0, -1] == 255 for b in batches for n, image in zip(numbers(b), b[0]) if image[0, 0, 0] != 255)


BROKEN = {
    "broken picture": sample(1, png=None, jpg=picture(1, "jpeg")[:200]),
    "no picture": sample(2, png=None),
    "bad json": sample(3, json=b'{"caption": '),
    "no caption": sample(4, txt=None, json=b'{"caption": null, "width": 500, "class": 0}'),
    "too small": sample(5, png=encoded(np.zeros((4, 4, 3), np.uint8))),
    "too long": sample(6, png=encoded(np.zeros((8, 40, 3), np.uint8))),
    "not kept": sample(7, json=b'{"width": 5, "class": 0}'),
    "keep failed with KeyError": sample(8, json=b'{"class": 0}'),
    "bad label": sample(9, json=b'{"width": 500, "class": "cat"}'),
    "broken array": sample(9, **{"latent.npy": b"\x93NUMPY"}),
}


def filtered(path):
    return load(path, keep=lambda about: about["width"] > 50, min_side=8, max_aspect=2, label="class")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_used_is_skipped_and_counted(tmp_path, workers):
    good = {str(n): sample(n) for n in range(20, 24)}
    make_tar(tmp_path / "a.tar", {**{f"x{i}": members for i, members in enumerate(BROKEN.values())}, **good})
    data = filtered(tmp_path)
    steps = take(data, 4, batch_size=1, workers=workers)
    assert sorted(n for batch, _ in steps for n in numbers(batch)) == [20, 21, 22, 23]
    after = take(data, 5, batch_size=1, workers=workers)[-1][1]  # the next epoch has begun: the first was read whole
    skipped = after["lane 0"]["skipped"]
    assert set(skipped) == set(BROKEN) and after["lane 0"]["read"] == 5
    report = data.report(after)
    assert report.startswith("5 samples read, ") and all(reason in report for reason in BROKEN)
    with pytest.warns(UserWarning, match="4 samples read, 10 skipped .*1 broken picture"):
        assert len(list(data)) == 4


def test_captions_may_come_from_the_json_or_be_left_out(tmp_path):
    make_tar(tmp_path / "a.tar", {"a": sample(1, txt=None), "b": sample(2, txt=b"\xef\xbb\xbf two \n lines\xff"),
                                  "c": sample(3, txt=None, json=None)})  # fmt: skip
    assert [record.caption for record in load(tmp_path, need_caption=False)] == ["picture 1", "two lines�", ""]


def test_pictures_of_all_modes(tmp_path):
    grey, deep = np.full((SIZE, SIZE), 77, np.uint8), np.full((SIZE, SIZE), 77 * 257, np.uint16)
    clear = np.zeros((SIZE, SIZE, 4), np.uint8)
    make_tar(tmp_path / "a.tar", {"a": sample(0, png=encoded(grey)), "b": sample(1, png=encoded(deep)),
                                  "c": sample(2, png=encoded(clear)),
                                  "d": sample(3, png=None, jpeg=encoded(grey, "jpeg")),
                                  "e": sample(4, png=None, webp=encoded(clear[..., :3], "webp"))})  # fmt: skip
    values = [round(float(record.image.mean() + 1) * 127.5) for record in load(tmp_path)]
    assert values == [77, 77, 255, 77, 0]
    assert all(record.image.shape == (1, SIZE, SIZE) for record in load(tmp_path, channels=1))


def test_a_large_jpg_is_decoded_small_and_looks_the_same(tmp_path):
    ramp = np.add.outer(np.arange(512), np.arange(512))[..., None].repeat(3, 2) // 4
    make_tar(tmp_path / "a.tar", {"a": sample(0, png=None, jpg=encoded(ramp.astype(np.uint8), "jpeg"))})
    exact = np.array(Image.fromarray(ramp.astype(np.uint8)).resize((32, 32), Image.LANCZOS)).transpose(2, 0, 1)
    image = next(iter(load_dataset("shards", path=tmp_path, size=32))).image
    assert ((image + 1) * 127.5 - torch.from_numpy(exact)).abs().max() < 4


def test_a_truncated_shard_gives_what_is_whole_and_is_counted(tmp_path):
    whole = make_tar(tmp_path / "a.tar", {str(n): sample(n) for n in range(10, 16)}).read_bytes()
    with open(tmp_path / "a.tar", "rb") as file:
        ends = [int(row[2].sum()) for row in index(file)[0]]  # the json is a sample's last member
    for cut in (*range(ends[3] - 700, ends[3] + 3000, 130), len(whole) // 2):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        with open(tmp_path / "a.tar", "rb") as file:
            table, truncated = index(file)
        assert truncated and len(table) == sum(end <= cut for end in ends), cut
        assert (table[:, :3, 0] > 0).all()
    with pytest.warns(UserWarning, match="a.tar is truncated"):
        steps = take(load(tmp_path), 7, batch_size=1)
    counts = steps[-1][1]["lane 0"]["skipped"]
    assert counts["truncated shard"] >= 2 and "1 epoch" not in counts
    assert load(tmp_path).report(steps[0][1]) == "1 samples read, 0 skipped, 1 truncated shard."


def test_missing_and_foreign_files_are_counted_and_told_once(folder, tmp_path):
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"not a tar at all" * 100)
    (tmp_path / "void.tar").write_bytes(bytes(10240))
    data = load([f"{tmp_path}/{{empty,text,void,gone}}.tar", folder / "00000.tar"], lanes=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        steps = take(data, 12, batch_size=1)
    assert len([w for w in told if "cannot be read" in str(w.message)]) == 1
    assert {n for batch, _ in steps for n in numbers(batch)} == set(range(6))
    counts = steps[-1][1]["lane 0"]["skipped"]
    assert counts["unreadable shard"] >= 3 and counts["empty shard"] >= 1


def test_one_lane_of_missing_shards_does_not_stop_a_run(folder):
    data = load(str(folder / "{00000..00015}.tar"))  # half of them are not there
    with pytest.warns(UserWarning, match="Later ones are only counted"):
        steps = take(data, 20, batch_size=16)
    assert {n for batch, _ in steps for n in numbers(batch)} == set(range(48))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_only_if_nothing_can_be_used(folder, workers):
    data = load(folder, keep=lambda about: about["no such field"])
    with pytest.raises(ValueError, match=r"no usable sample in \d+ shards .*keep failed with KeyError"):
        take(data, 1, workers=workers)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_no_permission_to_read():
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        make_shards(place, shards=2, each=2)
        (place / "00001.tar").chmod(0)
        locked = make_shards(place / "locked", shards=1)
        locked.chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            with pytest.warns(UserWarning, match="00001.tar cannot be read.*Permission denied"):
                steps = take(load(place), 4, batch_size=2)
            with pytest.raises(PermissionError, match="locked"):
                load(locked)
        finally:
            os.seteuid(user)
        assert {n for batch, _ in steps for n in numbers(batch)} == {0, 1}
        locked.chmod(0o755)


def test_paths(folder, tmp_path, monkeypatch):
    names = [f"{i:05}.tar" for i in range(8)]
    for path in (folder, str(folder), f"{folder}/*.tar", f"{folder}/{{00000..00007}}.tar", [folder],
                 [f"{folder}/{name}" for name in names]):  # fmt: skip
        assert [Path(p).name for p in load(path).paths] == names
    monkeypatch.chdir(folder)
    assert [Path(p).name for p in load("0000[0-3].tar").paths] == names[:4] and len(load("00001.tar").paths) == 1
    assert braces("a{x,y}/{08..11}.tar")[3:6] == ["ax/11.tar", "ay/08.tar", "ay/09.tar"]
    with pytest.raises(ValueError, match="counts down"):
        load("{5..1}.tar")
    for path in (tmp_path, tmp_path / "nowhere", f"{tmp_path}/*.tar", "{0..3}.tar"):
        with pytest.raises(FileNotFoundError, match="names no tar that is there"):
            load(path)
    with pytest.raises(ValueError, match="say which"):
        load(None)


@pytest.mark.parametrize("options", [{"keep": 3}, {"min_side": -1}, {"max_aspect": 0.5}, {"lanes": 0}, {"channels": 4}])
def test_wrong_arguments(folder, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        load(folder, **options)


@pytest.fixture
def memory(folder):
    """The shards behind a URL, in fsspec's file system in memory."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for file in folder.iterdir():
        system.pipe(f"/set/{file.name}", file.read_bytes())
    yield system
    system.rm("/set", recursive=True)


def test_a_stream_through_fsspec_is_the_same(folder, memory):
    local = take(load(folder), 8)
    for path in ("memory://set", "memory://set/*.tar", "memory://set/{00000..00007}.tar"):
        for (one, place), (two, there) in zip(local, take(load(path), 8), strict=True):
            assert same(one, two) and place == there
    assert sum(1 for _ in load("memory://set")) == 48


def test_failures_of_a_network_are_no_end(folder, memory, monkeypatch):
    class Strange(Exception):
        """An error of a file system that is no OSError."""

    monkeypatch.setattr(shard_reading, "PAUSES", (0, 0))
    opened, tried = memory.open, []

    def flaky(path, *args, **options):
        tried.append(path)
        if path.endswith("3.tar") or tried.count(path) == 1:
            raise Strange("connection lost")
        return opened(path, *args, **options)

    monkeypatch.setattr(type(memory), "open", lambda self, path, *a, **k: flaky(path, *a, **k))
    with pytest.warns(UserWarning, match="00003.tar cannot be read and is left out: Strange: connection lost"):
        steps = take(load("memory://set"), 6)
    assert load(folder).report(steps[-1][1]).endswith("48 samples read, 0 skipped, 1 unreadable shard.")
    with pytest.raises(ImportError, match="cannot be read"):
        monkeypatch.setitem(sys.modules, "fsspec", None)
        load("memory://set")


def test_headers_are_read_as_tarfile_reads_them(tmp_path):
    names = ["a.jpg", "deep/" * 30 + "b.txt", "x" * 150 + ".json", "grüße.png", "n" * 99 + "/" + "m" * 90 + ".txt"]
    for style in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=style) as tar:
            tar.add(tmp_path, "folder", recursive=False)
            for i, name in enumerate(names):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = 100 * i, 0.5 if style == tarfile.PAX_FORMAT else 0
                tar.addfile(member, io.BytesIO(bytes(100 * i)))
        with open(tmp_path / "a.tar", "rb") as file, tarfile.open(tmp_path / "a.tar") as tar:
            expected = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
            assert list(shard_reading._members(file)) == expected and len(expected) == 5


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
    assert [int((r.image.mean() + 1) * 127.5 + 0.5) for r in load(tmp_path / "b", keep=lambda a: a["width"])] == [1, 2]


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


def test_no_pickle_is_read(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    make_tar(tmp_path / "a.tar", {"a": sample(1, **{"tokens.npy": buffer.getvalue()}), "b": sample(2)})
    with pytest.warns(UserWarning, match="1 broken array"):
        assert [record.caption for record in load(tmp_path)] == ["picture 2"]


def test_an_open_shard_of_ten_thousand_samples_takes_little_memory(tmp_path):
    make_tar(tmp_path / "a.tar", {f"{n:09}": {"jpg": b"", "txt": b"", "json": b""} for n in range(10_000)}, mtime=0)
    tracemalloc.start()
    shard = Shard(str(tmp_path / "a.tar"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(shard) == 10_000 and held < 1.5e6  # times 64 lanes
    shard.close()


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
