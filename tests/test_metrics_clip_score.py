"""CLIP score, with a CLIP of a few random weights: equal to torchmetrics and to the formula; nothing is fetched."""

import copy
import json
import math

import pytest
import torch

import minidiff  # noqa: F401  before torchvision
from minidiff.metrics import clip_score
from minidiff.metrics.clip_score import _cosines, read_clip

CAPTIONS = ["a cat", "a dog", "birthday cake", "b", "a cat", "zebra"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a CLIP whose words are letters, of 20 tokens and 16 pixels."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    files, folder = tmp_path_factory.mktemp("words"), tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (files / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (files / "merges.txt").write_text("#version: 0.2\n")
    names = {"vocab": str(files / "vocab.json"), "merges": str(files / "merges.txt")}
    try:
        tokenizer = transformers.CLIPTokenizerFast(**names, model_max_length=20)
    except TypeError:  # before transformers 5
        tokenizer = transformers.CLIPTokenizerFast(
            **{key + "_file": name for key, name in zip(("vocab", "merges"), names.values())}, model_max_length=20)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=8)
    config = transformers.CLIPConfig(
        text_config=small | dict(vocab_size=len(words), max_position_embeddings=20, bos_token_id=52, eos_token_id=53,
                                 pad_token_id=53),
        vision_config=small | dict(image_size=16, patch_size=8), projection_dim=8)  # fmt: skip
    torch.manual_seed(1)
    network = transformers.CLIPModel(config)
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)  # or all pictures and texts would be alike
    torch.nn.init.constant_(network.logit_scale, 1.0)
    with torch.no_grad():
        network.visual_projection.weight.neg_()  # with this seed the mean of the cosines is positive
    network.save_pretrained(folder)
    transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(folder):
    return read_clip(folder)


def pictures(n=6, channels=3):
    return 2 * torch.rand(n, channels, 16, 16, generator=torch.Generator().manual_seed(0)) - 1


class Older(torch.nn.Module):
    """The CLIP as torchmetrics expects it, whose features are tensors."""

    def __init__(self, network):
        super().__init__()
        self.network, self.config = network, network.config

    def get_image_features(self, pixels):
        found = self.network.get_image_features(pixels)
        return getattr(found, "pooler_output", found)

    def get_text_features(self, ids, mask):
        found = self.network.get_text_features(ids, mask)
        return getattr(found, "pooler_output", found)


def test_it_is_that_of_torchmetrics(clip):
    theirs = pytest.importorskip("torchmetrics.functional.multimodal").clip_score
    x = pictures()
    pixels = ((x + 1) * 127.5).round().to(torch.uint8)
    with torch.no_grad():
        one = [theirs(pixels[i], CAPTIONS[i], lambda: (Older(clip[0]), clip[1])).item() for i in range(len(x))]
        expected = theirs(pixels, CAPTIONS, lambda: (Older(clip[0]), clip[1])).item()
    found = clip_score(x, CAPTIONS, clip)
    assert found == pytest.approx(expected, abs=1e-3)
    assert max(one) - min(one) > 5  # pictures that differ
    assert found.count == len(x) and found.error > 0


def test_the_formula_its_error_and_batches(clip, folder):
    network, processor = clip
    x, scores = pictures(), []
    for picture, caption in zip(x, CAPTIONS):
        pixels = ((picture + 1) * 127.5).round().to(torch.uint8)
        with torch.no_grad():
            states = network.vision_model(processor(images=[pixels], return_tensors="pt")["pixel_values"])
            seen = network.visual_projection(states.pooler_output)[0]
            states = network.text_model(**processor.tokenizer([caption], return_tensors="pt"))
            said = network.text_projection(states.pooler_output)[0]
        scores.append(100 * (seen @ said / seen.norm() / said.norm()).item())
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
    found = clip_score(x, CAPTIONS, clip, batch_size=4)
    assert found == pytest.approx(mean, abs=1e-3)
    assert found.error == pytest.approx(deviation / math.sqrt(len(scores)), rel=1e-3)
    assert mean > 0
    opposite = copy.deepcopy(network)
    opposite.visual_projection.weight.data.neg_()
    assert clip_score(x, CAPTIONS, (opposite, processor)) == 0  # a mean below 0
    best = max(range(len(x)), key=scores.__getitem__)
    assert clip_score(x[best:best + 1], [CAPTIONS[best]], folder) == pytest.approx(scores[best], abs=1e-3)
    assert folder in str(clip_score(x, CAPTIONS, folder)) and "6 pictures" in str(found)
    assert copy.deepcopy(found).error == found.error


def test_long_captions_keep_their_end_mark(clip):
    """A caption of 18 words fills the 20 places: what follows is cut, and the last place is still the end."""
    short, fits, long = (_cosines(*clip, pictures(1), ["a " * count], "cpu").item() for count in (17, 18, 50))
    assert long == pytest.approx(fits, abs=1e-4) != pytest.approx(short, abs=1e-2)


def test_grey_pictures(clip):
    grey = pictures(2, channels=1)
    assert clip_score(grey, CAPTIONS[:2], clip) == clip_score(grey.expand(-1, 3, -1, -1), CAPTIONS[:2], clip)


def test_the_network_stays_as_it_was(clip):
    clip[0].train()
    clip_score(pictures(1), ["a"], clip)
    assert clip[0].training
    clip[0].eval()


def test_nothing_is_fetched_in_silence(monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    asked = []

    def absent(name, local_files_only, **options):
        asked.append((str(name), local_files_only))
        raise OSError("not in the cache")

    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", absent)
    with pytest.raises(FileNotFoundError, match="no CLIP could be read from 'nobody/clip'.*download=True"):
        clip_score(pictures(1), ["a"], "nobody/clip")
    with pytest.raises(FileNotFoundError):
        clip_score(pictures(1), ["a"], "nobody/clip", download=True)
    with pytest.raises(FileNotFoundError):
        clip_score(pictures(1), ["a"], tmp_path, download=True)  # a folder needs no network
    assert asked == [("nobody/clip", True), ("nobody/clip", False), (str(tmp_path), True)]
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="must hold config.json, model.safetensors"):
        clip_score(pictures(1), ["a"], tmp_path / "empty")


def test_errors(monkeypatch, clip):
    with pytest.raises(ValueError, match="list of 6 strings, one for each picture, got 2 entries"):
        clip_score(pictures(), CAPTIONS[:2], clip)
    with pytest.raises(ValueError, match="list of 1 strings, one for each picture, got 'a'"):
        clip_score(pictures(1), "a", clip)
    with pytest.raises(ValueError, match=r"list of 2 strings, one for each picture, got \['a', None\]"):
        clip_score(pictures(2), ["a", None], clip)
    with pytest.raises(ValueError, match=r"values in \[-1, 1\]"):
        clip_score(3 * pictures(), CAPTIONS, clip)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        clip_score(pictures(1), ["a"])
