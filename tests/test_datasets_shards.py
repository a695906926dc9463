"""Shards of captioned pictures: order, lanes, resumption, paths and URLs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from shard_files import SIZE, joined, load, make_shards, numbers, same, take

from minidiff.datasets import shard_reading
from minidiff.datasets.shard_reading import Shard, braces


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """48 samples in 8 shards."""
    return make_shards(tmp_path_factory.mktemp("shards") / "set")


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
    unbroken = take(data, 9)
    before = list(joined(data, 8, world, workers=workers))
    for step in range(1, 8) if later == 0 and workers == 0 else (3,):
        (after, place), *_ = joined(data, 1, then, position=before[step - 1][1], workers=later)
        assert same(after, unbroken[step][0]) and place == unbroken[step][1], f"after {step} steps"


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


def test_the_benchmark_runs(root, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import shard_reading

    shard_reading.main(["--repeats", "1", "--count", "64"], out=tmp_path / "shard_reading.py")
    rows = json.loads((tmp_path / "shard_reading.json").read_text(encoding="utf-8"))["rows"]
    assert [row["size"] for row in rows] == [256, 64] and all(row["shards_images_per_second"] > 0 for row in rows)
