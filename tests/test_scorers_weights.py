"""The two judges that come with the package, and the tool that made them."""

import sys

import pytest
import torch
import train_weights

from minidiff import create_model, from_pretrained, load, load_dataset, schedules
from minidiff.checkpoints import read_card
from minidiff.datasets import InMemory
from minidiff.files import data_folder
from minidiff.scorers import Classifier, TextScorer
from minidiff.text import WordTokenizer


@pytest.mark.parametrize("name, kind", [("emoji-classifier", Classifier), ("emoji-clip", TextScorer)])
def test_the_tool_that_makes_the_shipped_two(name, kind, tmp_path, monkeypatch, capsys):
    folders = ["--folder", str(tmp_path / "run"), "--out", str(tmp_path / "weights")]
    monkeypatch.setattr(sys, "argv", ["train_weights.py", name, "--smoke", *folders])
    train_weights.main()
    assert f"| `{name}` |" in capsys.readouterr().out
    judge, card = from_pretrained(tmp_path / "weights"), read_card(tmp_path / "weights")
    assert type(judge) is kind and judge.shape == (3, 16, 16) and len(card["classes"]) == 10
    measured = card["accuracy" if kind is Classifier else "caption_among_32"]["test"]
    assert list(measured) == ["0.05", "0.25", "0.5", "0.75"] and all(0 <= share < 0.5 for share in measured.values())


def test_pictures_are_shifted_by_one_pixel_and_keep_what_they_are():
    classifier = Classifier(create_model("classifier_test"), schedules.cosine(), shape=(3, 8, 8))
    pictures = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    pictures[1, :, 3, 4] = 9
    data = InMemory(pictures, [2, 1], ["red heart", "cat"], ["a", "b", "c"])
    nine = train_weights.shifted(data, classifier)
    assert len(nine) == 18 and nine.labels.tolist() == [2, 1] * 9
    places = {tuple(divmod((picture[0] == 9).int().argmax().item(), 8)) for picture in nine.pictures[1::2]}
    assert places == {(i, j) for i in (2, 3, 4) for j in (3, 4, 5)}
    assert nine.pictures[0, 0].tolist()[0] == [255] * 8 and (nine.pictures[8] == 0).all()  # white, and in the middle
    tokenizer = WordTokenizer(["red", "heart", "cat"])
    network = create_model("clip_test", vocab_size=len(tokenizer))
    judge = TextScorer(network, schedules.cosine(), tokenizer, shape=(3, 8, 8))
    assert train_weights.shifted(data, judge).labels.equal(judge.tokens(["red heart", "cat"] * 9))


@pytest.fixture(scope="module")
def noised():
    """Held-out emoji: {t: x_t}, with the data set."""
    data = load_dataset("emoji", size=16, split="test")
    schedule, x0 = load("emoji-unet").schedule, data.images()
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(7))
    return data, {t: schedule(t)[0] * x0 + schedule(t)[1] * eps for t in (0.05, 0.5)}


@pytest.mark.parametrize("name", ["emoji-classifier", "emoji-clip"])
def test_the_shipped_two_are_small_and_share_the_schedule_of_the_generator(name):
    assert (data_folder() / "weights" / name / "model.safetensors").stat().st_size < 3e6
    judge, generator = load(name), load("emoji-unet")
    assert repr(judge.schedule) == repr(generator.schedule) and judge.time == generator.time
    assert judge.shape == generator.shape


def test_the_shipped_classifier_is_as_accurate_as_its_card_says(noised):
    judge, card, (data, x_t) = load("emoji-classifier"), read_card("emoji-classifier"), noised
    assert card["classes"] == data.classes and judge.network.num_classes == len(data.classes)
    with torch.no_grad():
        for t in x_t:
            share = (judge.logits(x_t[t], t).argmax(1) == data.labels).float().mean().item()
            assert share == pytest.approx(card["accuracy"]["test"][str(t)], abs=0.06)


def test_the_shipped_scorer_finds_the_caption_of_known_emoji():
    judge, data = load("emoji-clip"), load_dataset("emoji", size=16, split="train")
    chosen = [data.captions.index(caption) for caption in ("blue heart", "cat face", "tomato", "flag of Japan")]
    x0, captions = data.images()[chosen], [data.captions[i] for i in chosen]
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x_t = judge.forward_process(x0, 0.3, eps)
        assert (judge.similarity(x_t, 0.3, captions).argmax(1) == torch.arange(4)).all()
    assert judge.tokenizer.words == WordTokenizer.from_captions(data.captions).words


def test_the_shipped_scorer_puts_known_words_together(noised):
    """"red heart" is held out: that red and heart go together has to come from other captions."""
    judge, (data, x_t) = load("emoji-clip"), noised
    rows = [i for i, caption in enumerate(data.captions) if caption == "red heart"]
    others = ["red heart", "blue heart", "green heart", "yellow heart", "red apple", "cat face", "flag of Japan"]
    with torch.no_grad():
        assert len(rows) == 2 and (judge.similarity(x_t[0.05][rows], 0.05, others).argmax(1) == 0).all()


def test_the_shipped_scorer_is_as_good_as_its_card_says():
    judge, card = load("emoji-clip"), read_card("emoji-clip")
    measured = train_weights.accuracy(judge, load_dataset("emoji", size=16, split="test"), draws=1)
    for t, share in card["caption_among_32"]["test"].items():
        assert measured[t] == pytest.approx(share, abs=0.05)
