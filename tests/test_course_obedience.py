"""What is wrong is named, figures say what was asked and what was read, and intervals stand where they should."""

import matplotlib

matplotlib.use("Agg")
import pytest  # noqa: E402

from minidiff.course import obedience  # noqa: E402
from minidiff.course.obedience import (  # noqa: E402
    answers,
    as_asked,
    changed,
    compared,
    during,
    framed,
    miss,
    renders,
    shares,
    trade_off,
    work,
)
from minidiff.datasets import shapes  # noqa: E402
from minidiff.metrics import Share, oracle_accuracy  # noqa: E402

ASKED = "a red circle left of a small blue square"


@pytest.mark.parametrize(
    ("shown", "word"),
    [
        ("a large red circle left of a small blue square", ""),
        ("a small blue square right of a large red circle", ""),
        ("a small blue square left of a large red circle", "places exchanged"),
        ("a large blue circle left of a small red square", "colours exchanged"),
        ("a large red square left of a small blue circle", "shapes exchanged"),
        ("a large red circle left of a large blue square", "size"),
        ("a large green circle left of a small blue square", "colour"),
        ("a large red cross left of a small blue square", "shape"),
        ("a large red circle above a small blue square", "relation"),
        ("a large green circle above a small blue square", "several"),
        ("a large green cross left of a small blue square", "several"),
        ("a large red circle", "count"),
        (None, "unreadable"),
    ],
)
def test_miss_names_what_is_wrong(shown, word):
    seen = shown and shapes.canonical(shapes.parse(shown))
    assert miss(ASKED, seen) == word


def test_things_are_exchanged_whatever_their_sizes():
    asked = "a small red circle left of a large blue square"
    assert miss(asked, shapes.parse("a small blue square left of a small red circle")) == "places exchanged"
    assert miss(asked, shapes.parse("a large blue circle left of a large red square")) == "colours exchanged"
    assert miss(asked, shapes.parse("a large blue circle left of a large green square")) == "several"


def test_sizes_can_be_exchanged():
    seen = shapes.parse("a large red circle left of a small blue square")
    assert miss("a small red circle left of a large blue square", seen) == "sizes exchanged"
    assert miss("a red circle", shapes.parse("a small red circle")) == ""
    assert miss("a red circle", shapes.parse("a small blue circle")) == "colour"


def test_miss_agrees_with_the_oracle():
    images, _, captions = shapes.load(size=16, split="test").batch(range(64))
    for turned in (captions, captions[1:] + captions[:1]):
        wrong = [bool(miss(caption, seen)) for caption, seen in zip(turned, shapes.read(images))]
        assert 1 - sum(wrong) / 64 == pytest.approx(float(oracle_accuracy(images, turned)["all"]))


def test_answers_are_told_from_the_side_that_was_asked():
    asked = shapes.parse("a small blue square right of a large red circle")
    seen = shapes.canonical(asked)
    assert as_asked(seen, asked) == asked
    assert as_asked(seen, seen) == seen
    one = shapes.parse("a small red cross")
    assert as_asked(one, asked) == one


def test_answers_show_caption_and_reading():
    images, _, captions = shapes.load(size=16, split="test").batch(range(3))
    wanted = [captions[0], captions[0], captions[2]]
    figure = answers(images, wanted, columns=2)
    used = [axes for axes in figure.axes if axes.images]
    assert len(used) == 3 and len(figure.axes) == 4
    texts = [axes.texts[0] for axes in used]
    assert used[0].get_title() == texts[0].get_text() and texts[0].get_color() == obedience.RIGHT
    assert texts[1].get_color() == obedience.WRONG
    assert " a " not in used[0].get_title() and used[0].get_title().count("\n") <= 2
    with pytest.raises(ValueError, match="3 pictures and 2 captions"):
        answers(images, captions[:2])


def test_a_frame_leaves_the_picture_alone():
    images = shapes.load(size=16).batch(range(2))[0]
    wide = framed(images)
    assert wide.shape == (2, 3, 18, 18) and wide[:, :, 1:-1, 1:-1].equal(images)
    assert wide[:, :, 0].unique().tolist() == pytest.approx([0.75])


def test_shares_draw_each_attribute_of_each_group():
    groups = {"seen": {"colour": Share(0.9, 100), "relation": Share(0.5, 40)}, "never": {"colour": Share(0.0, 20)}}
    figure = shares(groups, marks={"colour": 1 / 6})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["90%", "50%", "0%"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["colour", "relation"]
    assert sorted(patch.get_width() for patch in axes.patches) == [0.0, 0.5, 0.9]
    assert not shares({"all": groups["seen"]}, names=["relation"]).axes[0].get_legend()
    with pytest.raises(ValueError, match="shape"):
        shares(groups, names=["shape"])


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("colour", "a green circle left of a small blue square"),
        ("shape", "a red square left of a small blue square"),
        ("relation", "a red circle right of a small blue square"),
        ("order", "a blue circle left of a small red square"),
    ],
)
def test_changed_changes_one_word(name, caption):
    assert changed(ASKED, name) == caption
    assert miss(caption, shapes.parse(ASKED)) != ""


def test_changed_refuses_what_is_not_said():
    assert changed("a small black cross", "size") == "a large black cross"
    with pytest.raises(ValueError, match="says no size"):
        changed(ASKED, "size")
    with pytest.raises(ValueError, match="says no relation"):
        changed("a red circle", "relation")
    with pytest.raises(ValueError, match="says no order"):
        changed("a red circle", "order")
    with pytest.raises(ValueError, match="weight"):
        changed(ASKED, "weight")


@pytest.mark.parametrize("caption", [ASKED, "a blue cross below a large red cross", "a small green triangle"])
def test_renders_show_their_caption_wherever_things_may_be(caption):
    pictures = renders(caption, 40)
    assert pictures.shape == (40, 3, 16, 16) and len(pictures.unique(dim=0)) == 40
    assert not any(miss(caption, scene) for scene in shapes.read(pictures))
    assert renders(caption, 7).equal(pictures[:7]) and not renders(caption, 7, seed=1).equal(pictures[:7])


def test_renders_of_exchanged_colours_have_the_same_places():
    ink = [(pictures < 0.9).any(1) for pictures in (renders(ASKED, 20), renders(changed(ASKED, "order"), 20))]
    assert (ink[0] == ink[1]).float().mean() > 0.98  # thin edges of another colour
    sizes = {scene.things[0].size for scene in shapes.read(renders(ASKED, 20))}
    assert sizes == {"small", "large"}


def test_compared_tells_what_a_run_costs_and_how_it_obeys():
    record = {
        "model": {"parameters": 1234, "flops": 5e6},
        "worth": {"right": {"mean": 0.05}, "all": {"mean": 0.02, "error": 0.001}},
        "accuracy": {"seen": {"colour": 0.5, "all": 0.25}, "held_out": {"all": 0.125}},
    }  # fmt: skip
    head, line, row = compared({"net": record}).splitlines()
    assert head.count("|") == line.count("|") == row.count("|")
    assert row.startswith("| net | 1,234 | 5 | 0.0500 | 20.0 ± 1.0 | - | 50.0% |")
    assert row.endswith("| 25.0% | 12.5% |")
    record["worth"]["order"] = {"mean": 0.003, "error": 0.0}
    assert "| 3.0 ± 0.0 |" in compared({"net": record})


def test_during_draws_over_steps_and_over_work():
    record = {
        "training": {"steps": 20, "batch_size": 4}, "model": {"flops": 1e12}, "curve": [0.5, 0.25],
        "during": {"step": [10.0, 20.0], "all": [0.0, 0.0]},
    }  # fmt: skip
    assert work(record, 20) == 3 * 1e12 * 4 * 20
    figure = during({"net": record, "other": record})
    over_steps, over_work, loss = (axes.lines[0] for axes in figure.axes)
    assert over_steps.get_xdata().tolist() == [10, 20] and over_work.get_xdata().tolist() == [120, 240]
    assert loss.get_xdata().tolist() == [120, 240] and loss.get_ydata().tolist() == [0.5, 0.25]
    assert figure.axes[0].get_ylim()[0] == 0


def test_trade_off_draws_both():
    figure = trade_off({1.0: Share(0.5, 10), 3.0: Share(0.9, 10)}, {1.0: 1.1, 3.0: 0.7})
    right, variety = figure.axes[0].lines
    assert right.get_ydata().tolist() == [0.5, 0.9] and variety.get_ydata().tolist() == [1.1, 0.7]
