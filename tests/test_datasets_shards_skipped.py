"""What shards leave out: broken, filtered and missing samples and tars."""

import io
import itertools
import os
import tarfile
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shard_files import SIZE, encoded, load, make_shards, make_tar, numbers, picture, same, sample, take

from minidiff import load_dataset
from minidiff.datasets import shard_reading
from minidiff.datasets.shard_reading import Shard, index


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """48 samples in 8 shards."""
    return make_shards(tmp_path_factory.mktemp("shards") / "set")


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


def test_resumption_within_a_truncated_shard_counts_nothing_twice(tmp_path):
    cut = make_tar(tmp_path / "a.tar", {str(n): sample(n, **({"txt": b""} if n == 1 else {})) for n in range(5)})
    cut.write_bytes(cut.read_bytes()[:-11_000])
    with pytest.warns(UserWarning, match="truncated"):
        steps = take(load(tmp_path), 9, batch_size=1)
        counts = steps[-1][1]["lane 0"]["skipped"]
        assert counts["truncated shard"] == 3 and 2 <= counts["no caption"] <= 3, "three samples in each epoch"
        for (_, before), (batch, after) in itertools.pairwise(steps):
            (again, place), = take(load(tmp_path), 1, batch_size=1, position=before)
            assert same(batch, again) and place == after


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
def test_an_error_only_if_nothing_can_be_used(folder, tmp_path, workers):
    data = load(folder, keep=lambda about: about["no such field"])
    with pytest.raises(ValueError, match=r"no usable sample in \d+ shards .*keep failed with KeyError"):
        take(data, 1, workers=workers)
    with pytest.raises(ValueError, match=r"in 1 shards in a row, .*6 skipped \(6 no caption\)"):
        one = make_tar(tmp_path / "a.tar", {str(n): sample(n, txt=b"") for n in range(6)})
        take(load(one), 1)


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


def test_no_pickle_is_read(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    make_tar(tmp_path / "a.tar", {"a": sample(1, **{"tokens.npy": buffer.getvalue()}), "b": sample(2)})
    with pytest.warns(UserWarning, match="1 broken array"):
        assert [record.caption for record in load(tmp_path)] == ["picture 2"]


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


def test_an_open_shard_of_many_samples_takes_little_memory(tmp_path):
    make_tar(tmp_path / "a.tar", {f"{n:09}": {"jpg": b"", "txt": b"", "json": b""} for n in range(2_000)}, mtime=0)
    tracemalloc.start()
    shard = Shard(str(tmp_path / "a.tar"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(shard) == 2_000 and held < 0.4e6  # times 5 for a real shard, times 64 lanes
    shard.close()
