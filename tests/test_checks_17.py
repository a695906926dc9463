"""The exercises of notebook 17: solutions pass, stubs fail, typical wrong answers are named; the maps of words."""

from pathlib import Path

import pytest
import torch

import minidiff
from minidiff.attention_maps import record_attention
from minidiff.course import listening
from minidiff.course.checks import notebook_17 as checks
from minidiff.course.exercises import prove
from minidiff.text import text_encoder

SOLUTIONS = Path(__file__).parents[1] / "notebooks" / "solutions" / "17_words.py"


@pytest.fixture(scope="module")
def solved():
    """The names that the solution file defines, with what the notebook gives it."""
    space = {"torch": torch}
    exec(SOLUTIONS.read_text(encoding="utf-8"), space)
    return space


def stub(*args):
    ...


def test_pool(solved):
    def ratio(over):
        return lambda tokens, mask: (tokens * mask[..., None]).sum(1) / over(mask)

    prove(checks.check_pool, solved["pool"], stub, {
        "padding counts": lambda tokens, mask: tokens.mean(1),
        "number of all rows": ratio(lambda mask: mask.shape[1]),
        "the sum, not yet divided": ratio(lambda mask: 1),
        "0/0": ratio(lambda mask: mask.sum(1, keepdim=True)),
        "turned round": lambda tokens, mask: solved["pool"](tokens, ~mask),
        "its own number of words": ratio(lambda mask: mask.sum() / len(mask)),
        "root of the number": ratio(lambda mask: mask.sum(1, keepdim=True).clamp(min=1).sqrt()),
        "the first word alone": lambda tokens, mask: tokens[:, 0] * mask[:, :1],
    })  # fmt: skip


def test_map_of_word(solved):
    right = solved["map_of_word"]

    def summed(weights, word, extras):
        return len(weights) * right(weights, word, extras)

    def scaled(weights, word, extras):
        return right(weights, word, extras) / right(weights, word, extras).sum()

    def at_the_end(weights, word, extras):
        return right(torch.cat([weights[:, -extras:], weights[:, :-extras]], 1) if extras else weights, word, extras)

    prove(checks.check_map_of_word, right, stub, {
        "heads are summed": summed,
        "first head alone": lambda weights, word, extras: right(weights[:1], word, extras),
        "strongest head": lambda weights, word, extras: right(weights.amax(0, keepdim=True), word, extras),
        "swapped": lambda *a: right(*a).T,
        "need not": scaled,
        "counted from 1": lambda weights, word, extras: right(weights, word - 1, extras),
        "not at the end": at_the_end,
    })  # fmt: skip


def test_twins(solved):
    pair = "a small red triangle right of a small yellow square", "a small yellow square right of a small red triangle"
    prove(checks.check_twins, solved["twins"], stub, {
        "the same sentence": lambda: pair[:1] * 2,
        "the same picture": lambda: (pair[0], "a small yellow square left of a small red triangle"),
        "not both captions": lambda: ("a cat", "a dog"),
        "different words": lambda: (pair[0], pair[0].replace("red", "green")),
        "Exchange less": lambda: pair,
        "two strings": lambda: (1, 2),
        "returned 3 values": lambda: (*pair, pair[0]),
    })  # fmt: skip


NETWORKS = {
    "ascend": ("ascend_tiny", {}), "cross": ("iuvit_tiny", {"text_attention": "cross"}),
    "joint": ("iuvit_tiny", {"text_attention": "joint"}),
}  # fmt: skip


def listener(kind):
    name, options = NETWORKS[kind]
    torch.manual_seed(0)
    network = minidiff.create_model(name, text_dim=128, pooled_dim=384, **options)
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


def test_bars_have_a_bar_for_each_answer_and_stand_or_lie():
    evidence = {"one": {"a": (0.5, 10), "b": (1.0, 10)}, "two": {"a": (0.25, 10), "b": (0.0, 0)}}
    standing, lying = listening.draw_bars(evidence, y="share"), listening.draw_bars(evidence, x="distance", log=True)
    assert [bar.get_height() for bar in standing.axes[0].patches] == [0.5, 1.0, 0.25, 0.0]
    assert [bar.get_width() for bar in lying.axes[0].patches] == [0.5, 1.0, 0.25, 0.0]
    assert [label.get_text() for label in lying.axes[0].get_yticklabels()] == ["a", "b"]
    run = {"curve": [0.5, 0.2], "training": {"steps": 100}}
    curves = listening.draw_obedience({"one": run, "two": run}, evidence).axes[0].lines
    assert [line.get_xdata().tolist() for line in curves] == [[50, 100]] * 2
