"""The recorded runs of a cascade, made in their quickest form, and the parts they are made of."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from minidiff import create_model, load_dataset, schedules
from minidiff.course.cascade import Enlarger, Shrunk, enlarge, explained, nearest, shrink
from minidiff.course.recorded import recorded
from minidiff.files import data_folder

SIZE, SMALL = 16, 8


def enlarger(**options):
    torch.manual_seed(0)
    network = create_model("efficient_unet_test", img_size=SIZE, text_dim=8)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)  # a fresh network says nothing
    return Enlarger(network, schedules.cosine(), small=SMALL, shape=(3, SIZE, SIZE), **options)


def text(count):
    return torch.randn(count, 2, 8, generator=torch.Generator().manual_seed(1))


def test_a_cascade_is_recorded_and_its_first_stage_trained_once(root, tmp_path):
    command = [sys.executable, root / "tools" / "cascade_runs.py", "cascade", "cascade", "cascade-clean"]
    options = ["--smoke", "--tier", "cpu", "--out", tmp_path]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert done.stdout.count("going on after step 4 of") == 1
    assert done.stdout.index("wrote") < done.stdout.index("going on") < done.stdout.rindex("wrote")
    runs = recorded_in(tmp_path)
    assert runs["cascade"]["top"] == 1 and runs["cascade-clean"]["top"] == 0
    for record in runs.values():
        check_record(record)
    first, second = (record["results"]["seen"]["base"] for record in runs.values())
    assert first["right"] == second["right"] and first["nearest_right"] == second["nearest_right"]


def recorded_in(folder):
    paths = sorted((folder / "cascade" / "cpu").glob("*.json"))
    with Image.open(paths[0].with_suffix(".png")) as strip:
        assert strip.size == (32 * 32, 32)
    return {path.stem: json.loads(path.read_text()) for path in paths}


def check_record(record):
    """What notebook 19 reads in a record."""
    assert record["format"] == 1 and record["compute"] > 0
    stages = ["single"] if record["run"] == "single" else ["base", "enlarger"]
    assert list(record["stages"]) == stages
    keys = stages[:1] if stages == ["single"] else [
        "base", *(f"{kind}-{level:g}" for kind in ("cascade", "enlarged") for level in record["levels"])]  # fmt: skip
    for split in record["results"].values():
        assert list(split) == keys
        for result in split.values():
            assert len(result["right"]) == record["prompts"] and set(result["right"]) <= {"0", "1"}
            assert {"accuracy", "error", "sharpness", "seconds"} < set(result)
            if record["data"]["scenes"] == "one":
                assert len(result["nearest_right"]) == record["prompts"]


@pytest.mark.parametrize("path", sorted((data_folder() / "results" / "cascade").glob("*/*.json")),
                         ids=lambda path: path.stem)  # fmt: skip
def test_kept_runs_are_whole(path):
    record = json.loads(path.read_text())
    check_record(record)
    assert f"cascade {record['run']} --tier {record['tier']}" in record["command"]
    samples = recorded("cascade", record["tier"])[path.stem]["samples"]
    assert samples.shape == (32, 3, record["data"]["size"], record["data"]["size"]) and samples.std() > 0.1


def test_kept_runs_cost_the_same():
    for folder in (data_folder() / "results" / "cascade").glob("*"):
        compute = [json.loads(path.read_text())["compute"] for path in folder.glob("*.json")]
        assert max(compute) < 1.001 * min(compute)


def test_the_level_says_how_noisy_the_small_picture_is():
    model = enlarger()
    low, noise = torch.rand(2, 3, SMALL, SMALL), torch.randn(2, 3, SMALL, SMALL)
    clean = model.shown(low, torch.zeros(2), noise)
    assert torch.equal(clean["low_res"], low) and clean["low_res_time"].tolist() == [0, 0]
    seen = model.shown(low, torch.tensor([0.5, 1.0]), noise)
    alpha, sigma = model.schedule(0.5)
    torch.testing.assert_close(seen["low_res"][0], alpha * low[0] + sigma * noise[0])
    torch.testing.assert_close(seen["low_res"][1], noise[1], atol=2e-2, rtol=0)
    assert seen["low_res_time"].tolist() == [499.5, 999]


def test_an_enlarger_learns_from_its_own_small_pictures():
    images, given = torch.rand(3, 3, SIZE, SIZE), {}
    for top in (0.0, 1.0):
        model = enlarger(top=top)
        model.network.register_forward_hook(lambda _, __, kw, ___: given.update(kw), with_kwargs=True)
        assert model.loss(images, text(3)).shape == (3,)
        same = torch.equal(given["low_res"], shrink(images, SMALL))
        assert same == (top == 0) and given["low_res_time"].max() <= 999 * top


def test_enlarging_does_not_depend_on_the_batch():
    model, low = enlarger(), torch.rand(3, 3, SMALL, SMALL)
    options = dict(level=0.2, steps=3, guidance=2.0)
    together, one_by_one = (enlarge(model, low, text(3), batch_size=size, **options) for size in (3, 1))
    assert together.shape == (3, 3, SIZE, SIZE)
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=0)
    assert not torch.allclose(together, enlarge(model, low, text(3), **options | dict(level=0.0)), atol=1e-3)


@pytest.mark.parametrize("size", [16, 32])
def test_the_nearest_object_is_read_from_rough_pictures(size):
    images, _, captions = load_dataset("shapes", size=size, scenes="one", split="test").batch(range(60))
    assert explained(images, captions).all()
    rough = images + 0.4 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert explained(rough, captions)[:, 3].float().mean() > 0.85
    assert not explained(images.roll(1, 0), captions)[:, 3].all()
    assert nearest(images[:1])[0] == tuple(captions[0].split()[1:])
    with pytest.raises(ValueError, match="two objects"):
        explained(images[:1], ["a red circle above a blue square"])


def test_small_pictures_are_those_of_the_large_ones():
    data = load_dataset("shapes", size=32, num=10)
    images, _, captions = Shrunk(data, 16).batch([3, 4])
    assert torch.equal(images, shrink(data.batch([3, 4])[0], 16)) and captions == data.batch([3, 4])[2]
    record = Shrunk(data, 16)[3]
    assert len(Shrunk(data, 16)) == 10 and torch.equal(record.image, images[0]) and record.caption == captions[0]
