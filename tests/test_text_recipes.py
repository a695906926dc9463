"""Text to image from pictures to prompts: shards, embeddings of a T5 cached ahead, training, drawing."""

import json

import pytest
import torch
from test_text_encoders import t5_folder

from minidiff import cli, load_dataset, sample
from minidiff.checkpoints import from_pretrained
from minidiff.datasets import cache_shards, write_shards
from minidiff.pipeline import TextToImage
from minidiff.safe_files import read_tensors
from minidiff.text import text_encoder

RECIPES = ["iuvit_t2i_64", "ascend_t2i_64", "ascend_t2i_128"]
PROMPTS = ["a small red circle", "a blue cross", ""]


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """The folder of a T5 of a few random weights, 24 channels wide."""
    return t5_folder(tmp_path_factory.mktemp("t5"), d_model=24)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, t5):
    """(captioned pictures in shards, the same with embeddings)."""
    folder, data = tmp_path_factory.mktemp("shards"), load_dataset("shapes", size=16)
    write_shards([data[i] for i in range(20)], folder / "pictures", per_shard=8)
    cache_shards(load_dataset("shards", path=folder / "pictures", size=16), folder / "cached", per_shard=8,
                 encode_text=text_encoder("t5-xxl", folder=t5), progress=False)  # fmt: skip
    return folder / "pictures", folder / "cached"


def trained(name, out, data, *words):
    """config.json of a short run of the recipe on this data, with the smallest network of its family."""
    words = ["train", name, "--smoke", "--data", str(data), "--no-progress", "--out", str(out), *words]
    assert cli.main(words) == 0
    return json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_from_shards_to_pictures(name, shards, t5, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # an XXL would take 20 GB, and all captions are encoded already
        patch.setattr("minidiff.commands.data.text_encoder", lambda *_, **__: pytest.fail("the encoder is not needed"))
        config = trained(name, tmp_path / "run", shards[1], "--encoder", f"t5-xxl:{t5}")
    assert config["arguments"]["text_dim"] == config["arguments"]["pooled_dim"] == 24
    assert config["data"] == str(shards[1]) and config["p_uncond"] == 0.1

    words = ["sample", str(tmp_path / "run"), "--num", "3", "--no-progress", "--seed", "4", "--options", "eta=0"]
    words += ["--out", str(tmp_path / "drawn.safetensors"), "--prompt", *PROMPTS[:2]]
    assert cli.main(words) == 0
    drawn = read_tensors(tmp_path / "drawn.safetensors")[0]["samples"]
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "model")]) == 0
    card = json.loads((tmp_path / "model" / "config.json").read_text())["card"]
    assert card["encoder"] == "t5-xxl", "a folder of this machine is of no use elsewhere"
    with pytest.raises(FileNotFoundError, match="'t5-xxl' could not be read.*folder="):
        TextToImage.from_pretrained(tmp_path / "model")
    encoder = text_encoder("t5-xxl", folder=t5)
    y = encoder([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    options = dict(sampler="ddim", steps=3, guidance=3.0, eta=0, progress=False)
    expected = sample(from_pretrained(tmp_path / "model"), 3, y=y, seed=4, **options)
    assert (drawn - expected).abs().max() < 5e-3  # prompts pass through the cache, and so through float16

    pipe = TextToImage.from_pretrained(tmp_path / "model", encoder=encoder, device="cpu")
    rows = pipe(PROMPTS, n=2, output="tensor", **options)
    images = pipe(PROMPTS, n=2, **options)
    assert rows.shape == (3, 2, 3, 8, 8) and rows.isfinite().all()
    assert [[image.size for image in row] for row in images] == [[(8, 8)] * 2] * 3


def test_the_cached_embeddings_are_those_of_the_captions(shards, t5):
    encoder = text_encoder("t5-xxl", folder=t5)
    words, cached = (list(load_dataset("shards", path=path, size=16)) for path in shards)
    for one, two in zip(words, cached, strict=True):
        y = encoder([one.caption])
        assert torch.allclose(two.caption.tokens, y.tokens[0], atol=5e-3)
        assert torch.allclose(two.caption.pooled, y.pooled[0], atol=5e-3) and torch.equal(one.image, two.image)


def test_words_in_shards_are_encoded_while_training(shards, t5, tmp_path):
    config = trained(RECIPES[1], tmp_path / "run", shards[0], "--encoder", f"t5-xxl:{t5}")
    assert config["arguments"]["text_dim"] == 24
    words = ["evaluate", str(tmp_path / "run"), "--num", "4", "--features", "none", "--levels", "0.5", "--no-progress"]
    assert cli.main(words) == 0


def test_grids_of_prompts_need_the_encoder(shards, t5, tmp_path):
    more = ["--sample-every", "1", "--sampling", 'prompts=["a red circle"]', "steps=2"]
    trained(RECIPES[0], tmp_path / "run", shards[1], "--encoder", f"t5-xxl:{t5}", *more)
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2


def test_embeddings_alone_say_how_wide_they_are(shards, tmp_path):
    cache_shards(load_dataset("shards", path=shards[0], size=16), tmp_path / "tokens", progress=False,
                 encode_text=lambda captions: torch.ones(len(captions), 4, 6))  # fmt: skip
    config = trained(RECIPES[2], tmp_path / "run", tmp_path / "tokens")
    assert (config["arguments"]["text_dim"], config["arguments"]["pooled_dim"]) == (6, 0)  # nothing is pooled here


def test_a_missing_encoder_says_what_to_add(shards, tmp_path, capsys):
    words = ["train", RECIPES[0], "--smoke", "--data", str(shards[0]), "--out", str(tmp_path / "run"), "--encoder"]
    assert cli.main([*words, "t5-xxl"]) == 2
    said = capsys.readouterr().err
    assert "with --encoder NAME:FOLDER, or fetch it: --download." in said
    assert cli.main([*words, f"t5-xxl:{tmp_path}/none"]) == 2
    assert "there is no folder" in capsys.readouterr().err
