"""Where words are heard and what they do: maps against the recorded weights, deaf layers, exchanged words, figures."""

import pytest
import torch

import minidiff
from minidiff.attention_maps import record_attention
from minidiff.course import listening, listening_figures
from minidiff.datasets import shapes
from minidiff.text import text_encoder

NETWORKS = {
    "ascend": ("ascend_tiny", {}), "cross": ("iuvit_tiny", {"text_attention": "cross"}),
    "joint": ("iuvit_tiny", {"text_attention": "joint"}),
}  # fmt: skip


def listener(kind, pooled_dim=384, **more):
    name, options = NETWORKS[kind]
    torch.manual_seed(0)
    network = minidiff.create_model(name, text_dim=128, pooled_dim=pooled_dim, **options, **more)
    return minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, 16, 16))


@pytest.mark.parametrize("kind", NETWORKS)
def test_word_maps_are_the_columns_of_the_recorded_maps(kind):
    model, y = listener(kind), text_encoder("words")(["a red circle", "a small blue square"])
    x0 = torch.zeros(2, 3, 16, 16)
    heard = listening.word_maps(model, x0, y, 0.5, seed=3)
    alpha, sigma = model.schedule(0.5)
    x = alpha * x0 + sigma * minidiff.samplers.seeded_noise([3, 4])(x0)
    with torch.no_grad(), record_attention(model) as maps:
        model.denoise(x, 0.5, y)
    assert heard
    for name, weights in heard.items():
        side, first = weights.shape[-1], kind != "ascend"  # the time is a token
        assert weights.shape[2:] == (4, side, side)
        row = maps[name][0][1, 0, first + side + 2]  # the patch in row 1, column 2
        assert torch.allclose(weights[1, 0, :, 1, 2], row[:4])
        assert weights[0, :, 3].abs().max() == 0  # padding
        total = weights.sum(2)
        assert total.max() < 1 + 1e-5 and (torch.allclose(total, torch.ones(())) == (kind != "joint"))
    assert torch.isfinite(listening.mean_maps(heard)).all()


def test_word_maps_refuse_what_hears_no_words():
    network = minidiff.create_model("iuvit_tiny")
    model = minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, 16, 16))
    y = text_encoder("words")(["a red circle"])
    with pytest.raises(ValueError, match="hears no text"):
        listening.word_maps(minidiff.Diffusion(Deaf(network), model.schedule, "v", shape=model.shape),
                            torch.zeros(1, 3, 16, 16), y, 0.5)


class Deaf(torch.nn.Module):
    """A network that is given a text and does not look."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, time, y=None):
        return self.network(x, time)


def test_explore_words_draws_a_map_for_each_word():
    encoder, prompts = text_encoder("words"), ["a red circle", "a small blue square"]
    shown = listening.explore_words(listener("cross"), encoder, torch.zeros(2, 3, 16, 16), prompts, times=(0.2, 0.8))
    assert len(shown.result.axes) == 1 + 3 and shown.result.axes[2].get_title() == "red"
    other = shown.function(prompt=prompts[1], time=0.2, layer="all")
    assert len(other.axes) == 1 + 4
    with pytest.raises(ValueError, match="one picture for each"):
        listening.explore_words(listener("cross"), encoder, torch.zeros(1, 3, 16, 16), prompts)
    with pytest.raises(ValueError, match="3 maps"):
        listening.draw_words({"t": (torch.zeros(3, 16, 16), torch.zeros(3, 8, 8))}, ["a", "cat"])


@pytest.mark.parametrize(("kind", "more"), [("ascend", {}), ("ascend", {"text_mlp": True}), ("cross", {})])
def test_deaf_layers_hear_the_empty_prompt(kind, more):
    model, encoder = listener(kind, pooled_dim=0, **more), text_encoder("words")
    y, x = encoder(["a red circle"]), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        for weights in model.parameters():  # else the last layers of a fresh network say nothing
            weights.add_(0.05 * torch.randn(weights.shape))
        layers = list(listening.word_maps(model, x, y, 0.5))
        told, untold = model.denoise(x, 0.5, y).out, model.denoise(x, 0.5, encoder([""])).out
        with listening.deaf(model, layers[:1]):
            one = model.denoise(x, 0.5, y).out
        with listening.deaf(model, layers):
            none = model.denoise(x, 0.5, y).out
        again = model.denoise(x, 0.5, y).out
    assert torch.equal(again, told)
    assert torch.allclose(none, untold, atol=1e-5) and not torch.allclose(none, told, atol=1e-3)
    assert not torch.allclose(one, told, atol=1e-4) and not torch.allclose(one, untold, atol=1e-4)
    with pytest.raises(ValueError, match="no cross-attention"), listening.deaf(model, ["network.head"]):
        pass


def test_inks_are_where_the_things_are():
    data = minidiff.load_dataset("shapes", scenes="two")
    images, _, captions = data.batch(range(60))
    scenes = [shapes.parse(caption) for caption in captions]
    keep = [i for i, scene in enumerate(scenes) if scene.things[0].colour != scene.things[1].colour]
    inks = listening.thing_inks(images[keep], [scenes[i] for i in keep])
    assert inks.shape == (len(keep), 2, 16, 16) and inks.prod(1).max() == 0  # no pixel belongs to both
    middle = torch.stack([(inks.sum(axis) * torch.arange(16)).sum(2) / inks.sum((2, 3)) for axis in (2, 3)])  # x, y
    for (first, second), relation in zip(middle.permute(1, 2, 0), [scenes[i].relation for i in keep]):
        axis, sign = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}[relation]
        assert sign * first[axis] < sign * second[axis]


@pytest.mark.parametrize("part", ["size", "colour", "shape"])
def test_exchanged_changes_one_word(part):
    caption = "a large red circle left of a small blue square"
    for k in (0, 1):
        other = listening.exchanged(shapes.parse(caption), k, part)
        (old, new), = [(a, b) for a, b in zip(caption.split(), other.split()) if a != b]
        assert old == getattr(shapes.parse(caption).things[k], part)
        assert new not in caption or part == "size"


def test_exchanges_tell_what_from_whose():
    data = minidiff.load_dataset("shapes", scenes="two")
    images, _, captions = data.batch(range(40))
    found = listening.exchanges(images, captions)
    assert all(kinds["right"] == (1, kinds["other"][1]) and kinds["right"][1] for kinds in found.values())
    scenes = [shapes.parse(caption) for caption in captions]
    swapped = [shapes.describe(s._replace(things=(s.things[0]._replace(colour=s.things[1].colour),
                                                  s.things[1]._replace(colour=s.things[0].colour)))) for s in scenes]
    kinds = listening.exchanges(images, swapped)
    assert kinds["colour"]["exchanged"][0] == 1 and kinds["shape"]["right"][0] == 1
    wrong = [listening.exchanged(scene, 0, "colour") for scene in scenes]
    assert listening.exchanges(images, wrong)["colour"]["other"][0] == 1
    assert listening.exchanges(torch.zeros(1, 3, 16, 16), captions[:1])["colour"]["right"] == (0, 0)


def test_bars_have_a_bar_for_each_answer_and_stand_or_lie():
    evidence = {"one": {"a": (0.5, 10), "b": (1.0, 10)}, "two": {"a": (0.25, 10), "b": (0.0, 0)}}
    standing = listening_figures.draw_bars(evidence, y="share")
    lying = listening_figures.draw_bars(evidence, x="distance", log=True)
    assert [bar.get_height() for bar in standing.axes[0].patches] == [0.5, 1.0, 0.25, 0.0]
    assert [bar.get_width() for bar in lying.axes[0].patches] == [0.5, 1.0, 0.25, 0.0]
    assert [label.get_text() for label in lying.axes[0].get_yticklabels()] == ["a", "b"]
    both = listening_figures.draw_bars({"seen": evidence, "new": evidence}, panels=True)
    assert [axes.get_title() for axes in both.axes] == ["seen", "new"] and len(both.axes[1].patches) == 4


def test_figures_of_recorded_runs():
    worth = {word: {"losses": [0.3, 0.4]} for word in ("colour", "order", "relation", "all")} | {"times": [0.1, 0.9]}
    run = {"curve": [0.5, 0.2], "training": {"steps": 100}, "prompts": 40, "worth": worth,
           "during": {"step": [50.0, 100.0], "all": [0.0, 0.5]}}  # fmt: skip
    left, right = listening_figures.draw_learning({"one": run, "two": run}).axes
    assert [line.get_xdata().tolist() for line in left.lines] == [[50, 100]] * 2
    assert [line.get_ydata().tolist() for line in right.lines] == [[0.0, 0.5]] * 2
    panels = listening_figures.draw_worth({"one": run}, ["colour", "order", "relation", "all"]).axes
    titles = ["wrong colour", "colours exchanged", "wrong relation", "no words"]
    assert [axes.get_title() for axes in panels[:4]] == titles
    assert panels[3].lines[0].get_ydata().tolist() == [0.3, 0.4]
    ratios = {(layer, word): [1.0, 2.0] for layer in ("mean", "encoder.0", "middle") for word in ("size", "shape")}
    time, layers = listening_figures.draw_heard(ratios, [0.1, 0.9], {"encoder.0": 8, "middle": 4}).axes
    assert [line.get_ydata().tolist() for line in layers.lines[:2]] == [[1.5, 1.5]] * 2
    assert len(time.lines) == 3
