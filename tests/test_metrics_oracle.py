"""The oracle as a metric: shares and their errors, parts, and how far the oracle itself can be trusted."""

import copy

import pytest
import torch
import torch.nn.functional as F

from minidiff.datasets import load_dataset, shapes
from minidiff.metrics import Share, held_out_groups, oracle_accuracy
from minidiff.metrics.oracle import MEASURED, blurred, damage_table

NAMES = ["readable", "count", "colour", "shape", "size", "relation", "all"]


def scenes(num, size=16, **options):
    images, _, captions = load_dataset("shapes", size=size, num=num, **options).batch(range(num))
    return images, captions


# --- the oracle itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, num", [(16, 1500), (32, 600), (64, 200)])
def test_clean_renders_are_read_without_error(size, num):
    result = oracle_accuracy(*scenes(num, size, seed=11))
    assert list(result) == NAMES
    assert all(share == 1.0 for share in result.values()), result


@pytest.mark.parametrize("size, num", [(16, 200), (32, 120), (64, 60)])
def test_errors_under_noise_and_blur_are_those_of_the_table(size, num):
    """Other scenes, and fewer: within 4 standard errors of both, and a picture for each share that is 0 or 1."""
    found = damage_table(size, num=num, seed=1, noise=(0.0, 0.05, 0.1, 0.15), blur=(0.02, 0.03, 0.04))
    assert list(found) == list(MEASURED[size])
    for case, expected in MEASURED[size].items():
        assert sum(expected) == pytest.approx(1.0, abs=2e-3) and sum(found[case]) == pytest.approx(1.0)
        for share, known in zip(found[case], expected):
            error = (known * (1 - known) * (1 / num + 1 / 1000)) ** 0.5
            assert abs(share - known) <= 4 * error + 1.5 / num, (size, case, share, known)


def test_damage_leads_to_refusal_and_not_to_mistakes():
    for size, table in MEASURED.items():
        for (kind, amount), (right, wrong, unreadable) in table.items():
            assert right == 1.0 or amount > 0.02
            assert wrong <= (0.06 if (kind, size) == ("blur", 16) else 0.001)
            assert (unreadable > 0) == (right < 1)


def test_blurred_is_a_gaussian():
    point = torch.ones(1, 3, 33, 33)
    point[:, :, 16, 16] = -1
    ink = 1 - blurred(point, 2.0)[0, 0]
    place = torch.arange(33) - 16.0
    assert ink.sum() == pytest.approx(2.0, rel=1e-5)
    assert (ink.sum(0) @ place.square()) / 2 == pytest.approx(4.0, rel=1e-2)
    assert torch.allclose(ink, ink.T) and ink[16, 16] / ink[16, 18] == pytest.approx(2.718281828**0.5, rel=1e-4)
    assert torch.equal(blurred(torch.ones(1, 3, 9, 9), 3.0), torch.ones(1, 3, 9, 9))  # no dark rim
    assert blurred(point, 0) is point


# --- the metric ------------------------------------------------------------------------------------------------------


def test_shares_are_those_of_shapes_score():
    images, captions = scenes(60, seed=2)
    images[:40] = images[:40].roll(3, 0)  # these show something else
    result = oracle_accuracy(images, captions)
    assert dict(result) == pytest.approx(shapes.score(images, captions))
    assert 0.3 < result["all"] < result["colour"] < result["count"] < result["readable"] == 1
    two = sum(shapes.parse(caption).relation is not None for caption in captions)
    assert {name: share.count for name, share in result.items()} == dict.fromkeys(NAMES, 60) | {"relation": two}
    one = oracle_accuracy(*scenes(5, scenes="one"))
    assert list(one) == [name for name in NAMES if name != "relation"]


def test_standard_errors_are_those_of_a_share():
    share = Share(0.8, 100)
    assert share.error == pytest.approx(0.04) and str(share) == "80.0% ± 4.0% (100)"
    assert share.interval == pytest.approx((0.7112, 0.8666), abs=1e-4)  # published for 80 of 100
    assert Share(1.0, 20).error == 0 and Share(1.0, 20).interval == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert Share(0.0, 20).interval == pytest.approx((0.0, 0.1611), abs=1e-4)
    again = copy.deepcopy(share)
    assert again == 0.8 and again.count == 100 and again.interval == share.interval
    draws = (torch.rand(2000, 100, generator=torch.Generator().manual_seed(0)) < 0.8).float().mean(1)
    assert draws.std().item() == pytest.approx(share.error, rel=0.05)  # what the error says: the spread of such shares


def test_groups():
    images, captions = scenes(40, seed=3)
    images[:10] = 1.0  # empty pictures
    mask = torch.arange(40) < 10
    parts = {"empty": mask, "rest": range(10, 40), "five": [8, 9, 10, 11, 12], "nobody": [], "none": ~(mask | ~mask)}
    result = oracle_accuracy(images, captions, parts)
    assert list(result.groups) == ["empty", "rest", "five"]
    assert result["all"] == 0.75 and result["all"].count == 40
    assert [result.groups[name]["all"] for name in result.groups] == [0.0, 1.0, 0.6]
    assert result.groups["five"]["all"].count == 5
    named = oracle_accuracy(images, captions, ["empty"] * 10 + ["rest"] * 30).groups
    assert named == {name: result.groups[name] for name in ("empty", "rest")}
    lines = str(result).split("\n")
    assert [line.split()[0] for line in lines] == ["pictures", "all", "empty", "rest", "five"]
    assert "75.0% ± 6.8%" in lines[1] and len(set(map(len, lines))) == 1


def test_held_out_groups_are_those_of_the_data_set():
    for split, held in (("train", False), ("test", False), ("held_out", True)):
        captions = scenes(300, held_out="default", split=split)[1]
        groups = held_out_groups(captions)
        assert list(groups) == ["seen", "held out", *(" ".join(pair) for pair in shapes.HELD_OUT)]
        assert (groups["held out"] == held).all() and (groups["seen"] != held).all()
        shown = torch.stack([groups[" ".join(pair)] for pair in shapes.HELD_OUT])
        assert torch.equal(shown.any(0), groups["held out"]) and shown.any(1).all() == held
    said = ["a circle right of a cross", "a cross right of a circle", "a cross above a circle", "a red cross"]
    said = [text.replace("a c", "a blue c") for text in said]
    assert held_out_groups(said, [("left of", "cross")])["held out"].tolist() == [True, False, False, False]
    assert held_out_groups(said, [["red", "cross"]])["red cross"].tolist() == [False, False, False, True]
    images, captions = scenes(30)
    groups = held_out_groups(captions)
    result = oracle_accuracy(images, captions, groups)
    assert result.groups["seen"]["all"].count + result.groups["held out"]["all"].count == 30


def test_errors():
    images, captions = scenes(4)
    with pytest.raises(ValueError, match="captions must be a list of 4 strings, one for each picture, got 3 entries"):
        oracle_accuracy(images, captions[:3])
    with pytest.raises(ValueError, match="one for each picture, got 'a red circle'"):
        oracle_accuracy(images[:1], "a red circle")
    with pytest.raises(ValueError, match="caption 'a cat' is not of the form"):
        oracle_accuracy(images[:1], ["a cat"])
    with pytest.raises(ValueError, match=r"values in \[-1, 1\], got .* to 255"):
        oracle_accuracy((images + 1) * 127.5, captions)
    with pytest.raises(ValueError, match="S >= 16"):
        oracle_accuracy(F.avg_pool2d(images, 2), captions)
    with pytest.raises(ValueError, match="groups has 3 names for 4 pictures"):
        oracle_accuracy(images, captions, ["a", "b", "c"])
    for wrong in ([4], [-1], torch.ones(3, dtype=torch.bool), [0.5], torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"groups\['part'\] must be .4,. bool, or numbers from 0 to 3"):
            oracle_accuracy(images, captions, {"part": wrong})
    with pytest.raises(ValueError, match="unknown pair .'red', 'star'."):
        held_out_groups(captions, [("red", "star")])
    with pytest.raises(ValueError, match="num must be a whole number of at least 1"):
        damage_table(16, num=0)
