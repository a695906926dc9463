"""Shapes: the scenes, their pictures, their captions, and the oracle that reads them back."""

import time

import pytest
import torch

from minidiff.datasets import load_dataset, shapes
from minidiff.datasets.scenes import GAP, mix


@pytest.mark.parametrize("size, num", [(16, 2500), (17, 300), (32, 1200), (64, 500)])
def test_oracle_is_exact(size, num):
    data = load_dataset("shapes", size=size, seed=5, num=num)
    images, _, captions = data.batch(range(num))
    truth = [shapes.canonical(scene) for scene in data.attributes(range(num))]
    wrong = [caption for caption, seen, true in zip(captions, shapes.read(images), truth) if seen != true]
    assert not wrong, f"{len(wrong)} of {num} misread, the first: {wrong[0]}"
    stored = ((images + 1) * 127.5).round() / 127.5 - 1  # also after a round trip through bytes
    assert shapes.read(stored[:200]) == truth[:200]


def test_oracle_bears_a_little_noise():
    data = load_dataset("shapes", size=16, seed=6)
    images, _, captions = data.batch(range(500))
    noise = 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert shapes.score(images + noise, captions)["all"] == 1.0


@pytest.mark.parametrize("size", [16, 32, 64])
def test_oracle_reads_nothing_into_noise(size):
    noise = torch.randn(60, 3, size, size, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 0.3, 0.1):
        assert shapes.read(scale * noise) == [None] * 60
    assert shapes.read(1 - (0.2 * noise).abs()) == [None] * 60
    for value in (1.0, 0.0, -1.0, float("nan")):
        assert shapes.read(torch.full((3, size, size), value)) is None


def test_oracle_refuses_what_is_not_a_scene():
    data = load_dataset("shapes", size=32, scenes="one", seed=1)
    image = data[0].image
    assert shapes.read(image) is not None
    assert shapes.read(0.5 * image + 0.5) is None  # faded
    assert shapes.read(torch.minimum(image, image.roll((9, 9), (1, 2)) * 0.2)) is None  # a grey ghost beside it
    circle = next(r.image for r in (data[i] for i in range(100)) if r.caption == "a large black circle")
    half = circle.clone()
    rows = (circle[0] < 0).any(1).nonzero()
    half[:, : int(rows.float().mean())] = 1.0
    assert shapes.read(half) is None
    cyan = 1 - (1 - circle) * torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert shapes.read(cyan) is None  # not a colour that is known
    grid = torch.ones(3, 32, 32)
    for row, column in ((2, 2), (2, 20), (20, 2)):
        grid[:, row : row + 9, column : column + 9] = data_colour("red")
    assert shapes.read(grid) is None  # three objects
    grid[:, 20:29, 2:11] = 1.0
    assert shapes.describe(shapes.read(grid)) == "a small red square left of a small red square"
    grid[:, 2:11, 20:29] = 1.0
    grid[:, 20:29, 20:29] = data_colour("blue")
    assert shapes.read(grid) is None  # neither beside nor below


def data_colour(name):
    return torch.tensor(shapes.COLOURS[name])[:, None, None] / 127.5 - 1


@pytest.mark.parametrize("shape", [(16, 16), (1, 16, 16), (3, 16, 17), (3, 8, 8), (2, 4, 16, 16)])
def test_oracle_checks_the_shape(shape):
    with pytest.raises(ValueError, match="expected .3, S, S. or .B, 3, S, S."):
        shapes.read(torch.ones(shape))


def test_score_counts_each_attribute():
    data = load_dataset("shapes", size=32, scenes="two")
    images, _, captions = data.batch(range(20))
    assert shapes.score(images, captions) == dict.fromkeys(
        ("readable", "count", "colour", "shape", "size", "relation", "all"), 1.0
    )
    scenes = [shapes.parse(caption) for caption in captions]
    turned = [shapes.describe(scene._replace(relation=shapes.RELATIONS[scene.relation])) for scene in scenes]
    said = shapes.score(images, turned)  # after 'A left of B' became 'A right of B', the two things are exchanged
    assert said["relation"] == said["count"] == 1.0 and said["all"] < 0.2
    images[:5] = 1.0
    assert shapes.score(images, captions)["readable"] == shapes.score(images, captions)["all"] == 0.75
    one = load_dataset("shapes", size=32, scenes="one")[0]
    assert shapes.score(one.image[None], [one.caption.replace("small ", "")])["all"] == 1.0  # size left open
    with pytest.raises(ValueError, match="1 images and 2 captions"):
        shapes.score(one.image[None], ["", ""])


@pytest.mark.parametrize("scenes", ["one", "two", "both"])
def test_captions_labels_and_attributes_agree(scenes):
    data = load_dataset("shapes", scenes=scenes, num=300)
    counts = set()
    for i, scene in enumerate(data.attributes(range(300))):
        record = data[i]
        first = scene.things[0]
        assert record.caption == shapes.describe(scene) and shapes.parse(record.caption) == scene
        assert data.classes[record.label] == f"{first.colour} {first.shape}"
        counts.add(len(scene.things))
        assert (scene.relation is None) == (len(scene.things) == 1)
    assert counts == {"one": {1}, "two": {2}, "both": {1, 2}}[scenes]


def test_parse():
    scene = shapes.parse("A small red circle left of a blue square.")
    assert scene.things == (("small", "red", "circle"), (None, "blue", "square")) and scene.relation == "left of"
    assert shapes.canonical(shapes.parse("a red circle below a blue square")) == shapes.parse(
        "a blue square above a red circle"
    )
    for wrong in ("a pink circle", "a red circle near a blue square", "red circle", "", "a red circle left of"):
        with pytest.raises(ValueError, match="colours red, green"):
            shapes.parse(wrong)


def test_item_is_the_same_at_every_size_and_length():
    small, large = load_dataset("shapes", size=16), load_dataset("shapes", size=64, num=10)
    assert [small[i].caption for i in range(10)] == [r.caption for r in large]
    means = torch.nn.functional.avg_pool2d(torch.stack([r.image for r in large]), 4)
    assert (means - small.batch(range(10))[0]).abs().mean() < 0.01
    assert torch.equal(small[-1].image, small[len(small) - 1].image)
    far = load_dataset("shapes", num=10**9)
    assert far[10**9 - 1].image.shape == (3, 16, 16) and torch.equal(far[7].image, small[7].image)
    assert [load_dataset("shapes", seed=1)[i].caption for i in range(3)] != [small[i].caption for i in range(3)]


def test_scenes_never_change():
    """The generator is ours, so that a seed means the same scenes on every machine and in every version."""
    assert mix([1, 2]).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # published first outputs of splitmix64
    assert [load_dataset("shapes")[i].caption for i in range(3)] == [
        "a small red triangle",
        "a large green cross left of a small black square",
        "a small purple square above a large blue circle",
    ]


def test_all_attributes_are_as_frequent():
    data = load_dataset("shapes", num=6000, scenes="two")
    scenes = data.attributes(range(6000))
    for values in (
        [s.relation for s in scenes],
        *([getattr(s.things[j], name) for s in scenes] for j in (0, 1) for name in ("size", "colour", "shape")),
    ):
        counts = torch.tensor([values.count(v) for v in set(values)]).float()
        assert (counts / counts.mean() - 1).abs().max() < 0.15
    pairs = torch.zeros(24, 24)
    for scene in scenes:
        pairs[tuple(data.classes.index(f"{t.colour} {t.shape}") for t in scene.things)] += 1
    assert (pairs > 0).float().mean() > 0.98  # every pair of things occurs


@pytest.mark.parametrize("size", [16, 64])
def test_pictures(size):
    images, _, _ = load_dataset("shapes", size=size, scenes="two").batch(range(300))
    assert images.shape == (300, 3, size, size) and images.dtype == torch.float32
    assert images.max() <= 1 and images.min() >= -1
    assert (images.amin(1) > 0.999).float().mean() > 0.5  # white background
    ink = images.amin(1) < 0.999
    for picture in ink[:100]:  # objects do not touch
        assert any((~picture).all(0)[1:-1]) or any((~picture).all(1)[1:-1])
    assert GAP * 16 >= 2


def shows(scene, pair):
    """Whether a scene shows a pair, by its attributes alone."""
    first, shape = pair
    sides = [] if scene.relation is None else [scene.relation, shapes.RELATIONS[scene.relation]]
    return any(
        thing.shape == shape and (thing.colour == first or (sides and sides[i] == first))
        for i, thing in enumerate(scene.things)
    )


@pytest.mark.parametrize("pairs", ["default", [("red", "circle")], [("above", "square"), ["blue", "cross"]]])
def test_held_out_pairs_are_never_trained_on_and_always_in_their_split(pairs):
    named = shapes.HELD_OUT if pairs == "default" else pairs
    splits = {split: load_dataset("shapes", held_out=pairs, split=split, num=3000) for split in
              ("train", "test", "held_out")}  # fmt: skip
    for split, data in splits.items():
        shown = torch.tensor([[shows(scene, pair) for pair in named] for scene in data.attributes(range(3000))])
        assert shown.any(1).all() if split == "held_out" else not shown.any()
        assert split != "held_out" or shown.any(0).all()  # each of the pairs
        images, _, captions = data.batch(range(300))
        truth = [shapes.canonical(shapes.parse(caption)) for caption in captions]
        assert shapes.read(images) == truth  # what is drawn is what is said
    assert splits["train"][5].caption != splits["test"][5].caption
    plain = load_dataset("shapes", num=3000)
    kept = [i for i, scene in enumerate(plain.attributes(range(300))) if not any(shows(scene, p) for p in named)]
    assert 100 < len(kept) < 299
    assert all(splits["train"][i].caption == plain[i].caption for i in kept[:50])  # what fits stays where it was


def test_held_out_items_depend_on_their_number_alone():
    data = load_dataset("shapes", held_out="default", split="held_out")
    whole = data.batch(range(200))
    for i in (0, 7, 133, 199):
        record = data[i]
        assert record.caption == whole[2][i] and torch.equal(record.image, whole[0][i])
    assert data.batch([199, 3])[2] == [whole[2][199], whole[2][3]]
    assert load_dataset("shapes", held_out="default", split="held_out", seed=1).batch(range(200))[2] != whole[2]
    one = load_dataset("shapes", held_out=[("left of", "cross")], scenes="two", split="held_out").attributes(range(200))
    assert {scene.relation for scene in one} == {"left of", "right of"}  # either way of saying it


def test_held_out_pairs_that_cannot_be():
    with pytest.raises(ValueError, match="split='held_out' is not one of 'train', 'test'"):
        load_dataset("shapes", split="held_out")
    with pytest.raises(ValueError, match="pair .'red', 'star'. is not .colour or relation, shape."):
        load_dataset("shapes", held_out=[("red", "star")])
    with pytest.raises(ValueError, match="'often' is not 'default' and no list of pairs"):
        load_dataset("shapes", held_out="often")
    with pytest.raises(ValueError, match="no scene shows one of them"):
        load_dataset("shapes", held_out=[("above", "cross")], scenes="one", split="held_out")
    with pytest.raises(ValueError, match="hold fewer out"):
        load_dataset("shapes", held_out=[(c, s) for c in shapes.COLOURS for s in shapes.SHAPES])


def test_captions_may_leave_sizes_out():
    data, whole = load_dataset("shapes", unsaid=0.3, num=2000), load_dataset("shapes", num=2000)
    said = [shapes.parse(caption) for caption in data.batch(range(2000))[2]]
    true = whole.attributes(range(2000))
    assert data.attributes(range(2000)) == true and torch.equal(data[9].image, whole[9].image)
    sizes = [(a.size, b.size) for one, two in zip(said, true) for a, b in zip(one.things, two.things)]
    assert all(a in (None, b) for a, b in sizes)
    assert 0.26 < sum(a is None for a, _ in sizes) / len(sizes) < 0.34
    assert data[7].caption == data.batch(range(9))[2][7]
    assert shapes.score(data.batch(range(300))[0], data.batch(range(300))[2])["all"] == 1.0
    with pytest.raises(ValueError, match="unsaid=2, expected a share"):
        load_dataset("shapes", unsaid=2)


def test_quick_to_draw():
    data, best = load_dataset("shapes"), 9.0
    for _ in range(5):
        begin = time.process_time()
        data.batch(range(64))
        best = min(best, time.process_time() - begin)
    assert best < 0.05


def test_turned_captions_say_the_same_the_other_way_round():
    plain, turned = (shapes.load(scenes="two", turned=share) for share in (0.0, 1.0))
    (images, labels, said), (same, numbers, turned_round) = plain.batch(range(200)), turned.batch(range(200))
    assert torch.equal(images, same) and torch.equal(labels, numbers)
    for caption, other in zip(said, turned_round):
        assert shapes.parse(other).relation in ("left of", "above")
        assert shapes.canonical(shapes.parse(caption)) == shapes.parse(other)
    half = shapes.load(scenes="two", turned=0.5).batch(range(4000))[2]
    first = sum(shapes.parse(caption).relation in ("left of", "above") for caption in half) / len(half)
    assert first == pytest.approx(0.75, abs=0.03)
    with pytest.raises(ValueError, match="turned=2, expected a share of the captions"):
        shapes.load(turned=2)
