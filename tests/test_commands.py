"""What the commands do: find data, fit a network to it, draw, measure, export, and read back what they wrote."""

import json

import pytest
import torch
from averages import equal, weights
from PIL import Image

from minidiff import cli, from_pretrained, load_dataset
from minidiff.commands import data, evaluate, export, models, sample, train
from minidiff.commands.options import Evaluate, Export, Sample
from minidiff.datasets import write_shards
from minidiff.safe_files import read_tensors

# --- data -------------------------------------------------------------------------------------------------------------


def test_a_folder_and_shards_are_found_by_their_path(tmp_path):
    (tmp_path / "pictures" / "red").mkdir(parents=True)
    (tmp_path / "pictures" / "blue").mkdir()
    for number in range(4):
        Image.new("RGB", (9, 9), "red").save(tmp_path / "pictures" / ("red", "blue")[number % 2] / f"{number}.png")
    pictures = data.load_data(str(tmp_path / "pictures"), size=8, flip=True)
    assert len(pictures) == 4 and pictures.classes == ["blue", "red"] and pictures.flip
    write_shards(pictures, tmp_path / "shards", per_shard=2)
    shards = data.load_data(str(tmp_path / "shards"), size=8, needs="labels")
    assert sorted(record.label for record in shards) == [0, 0, 1, 1] and not shards.need_caption
    assert data.load_data(str(tmp_path / "shards" / "*.tar"), size=8, needs="text").need_caption
    words = ["train", "ddpm_test", "--data", str(tmp_path / "shards"), "--steps", "2", "--batch-size", "2", "--out",
             str(tmp_path / "run"), "--no-progress", "--size", "8"]  # fmt: skip
    assert cli.main(words) == 0 and json.loads((tmp_path / "run" / "config.json").read_text())["data"] == words[3]


def test_pictures_are_mirrored_and_scaled():
    plain, both = load_dataset("digits"), data.load_data("digits", size=8, flip=True)
    assert len(both) == 2 * len(plain) and both.captions[len(plain)] == plain.captions[0]
    assert torch.equal(both.images()[len(plain):], plain.images().flip(-1))
    unit = data.load_data("digits", size=8, value_range=(0.0, 1.0)).images()
    torch.testing.assert_close(unit, (plain.images() + 1) / 2)
    with pytest.raises(ValueError, match="in_memory=true"):
        data.load_data("shapes", size=16, value_range=(0.0, 1.0))


def test_the_network_is_fitted_to_the_data():
    options, _ = train.parse(["uvit_cifar10", "--data", "digits", "--size", "8", "--no-flip", "--labels", "--arguments",
                              "embed_dim=16", "depth=2", "num_heads=2"])  # fmt: skip
    dataset = train.data_of(options, train.published(options))
    diffusion = train.model_of(options, train.published(options), dataset)
    assert diffusion.shape == (1, 8, 8) and diffusion.network.num_classes == 10 and diffusion.schedule.steps is None
    assert options.arguments["img_size"] == 8 and options.arguments["patch_size"] == 2


# --- sample, evaluate, export ---------------------------------------------------------------------------------------


def test_pictures_of_a_run(digits_run, tmp_path):
    common = ["sample", str(digits_run), "--num", "5", "--steps", "2", "--no-progress"]
    common += ["--label", "seven", "3", "--out"]
    assert cli.main([*common, str(tmp_path / "sheet.png")]) == 0 and Image.open(tmp_path / "sheet.png").width > 16
    assert cli.main([*common, str(tmp_path / "folder")]) == 0
    assert [file.name for file in sorted((tmp_path / "folder").iterdir())] == [f"{i:05d}.png" for i in range(5)]
    assert Image.open(tmp_path / "folder" / "00000.png").size == (8, 8)
    assert cli.main([*common, str(tmp_path / "numbers.safetensors")]) == 0
    drawn = read_tensors(tmp_path / "numbers.safetensors")[0]["samples"]
    assert drawn.shape == (5, 1, 8, 8)
    opened = models.open_model([str(digits_run)], "sample")
    assert sample.wanted(opened, Sample(num=5, label=("seven", "3"))) == [7, 3, 7, 3, 7]
    assert sample.wanted(opened, Sample(num=12))[-2:] == [0, 1]


def test_a_model_that_takes_text_is_prompted(tmp_path, capsys):
    assert cli.main(["train", "ascend_t2i_64", "--smoke", "--out", str(tmp_path / "run")]) == 0
    words = ["sample", str(tmp_path / "run"), "--num", "3", "--no-progress", "--out", str(tmp_path / "a.safetensors")]
    assert cli.main(words) == 2 and "say it with --prompt" in capsys.readouterr().err
    assert cli.main([*words, "--prompt", "a cat", "a dog"]) == 0
    assert read_tensors(tmp_path / "a.safetensors")[0]["samples"].shape == (3, 3, 8, 8)
    text = sample.wanted(models.open_model([str(tmp_path / "run")], "sample"), Sample(num=3, prompt=("a cat", "a dog")))
    expected = data.random_text(["a cat", "a dog", "a cat"])
    assert torch.equal(text.tokens, expected.tokens) and torch.equal(text.pooled, expected.pooled)


def test_an_encoder_by_name_decides_the_width_of_the_text(tmp_path, capsys):
    words = ["train", "ascend_test", "--data", "shapes", "--size", "16", "--steps", "1", "--batch-size", "2"]
    words += ["--arguments", "text_dim=1", "--encoder", "words", "--no-progress", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["arguments"]["text_dim"] > 1
    words = [str(tmp_path / "run"), "--num", "2", "--steps", "1", "--no-progress"]
    assert cli.main(["sample", *words, "--prompt", "a red circle", "--out", str(tmp_path / "a.png")]) == 0
    assert cli.main(["evaluate", *words, "--features", "none", "--levels", "0.5"]) == 0
    assert "oracle: colour" in capsys.readouterr().out


def test_latents_become_numbers(tmp_path, capsys):
    assert cli.main(["train", "dit_b_2", "--smoke", "--out", str(tmp_path / "run")]) == 0
    words = ["sample", str(tmp_path / "run"), "--num", "2", "--no-progress", "--out"]
    assert cli.main([*words, str(tmp_path / "a.png")]) == 2 and "decoder" in capsys.readouterr().err
    assert cli.main([*words, str(tmp_path / "a.safetensors")]) == 0
    assert read_tensors(tmp_path / "a.safetensors")[0]["samples"].shape == (2, 4, 8, 8)


def test_measures_of_a_run(digits_run, capsys):
    words = ["evaluate", str(digits_run), "--num", "12", "--steps", "2", "--levels", "0.2", "0.9", "--no-progress"]
    assert cli.main(words) == 0
    found = json.loads((digits_run / "evaluation.json").read_text())
    assert list(found["loss"]) == ["0.2", "0.9"] and found["pictures"] == 12 and found["data"] == "digits"
    assert set(found["distances"]) == {"Fréchet distance (digits)", "Kernel distance (digits)"}
    assert "12 against 12 pictures" in capsys.readouterr().out


def test_the_loss_is_that_of_held_out_pictures_with_the_averaged_weights(digits_run):
    opened = models.open_model([str(digits_run)], "evaluate")
    options = Evaluate(num=20, levels=(0.5,), features="none", progress=False)
    found = evaluate.evaluate(opened, options)["loss"]["0.5"]
    dataset, name = opened.data(options)
    assert name == "digits" and len(dataset) == len(load_dataset("digits", split="test"))
    images, labels, _ = evaluate.held_out(dataset, 20, 0)
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = opened.diffusion.loss(images, labels, t=torch.full((20,), 0.5), eps=eps)
    assert found[0] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert found[1] == pytest.approx(losses.std().item() / 20**0.5, abs=1e-5)
    assert equal({key: value for key, value in opened.diffusion.state_dict().items()}, weights(digits_run))


def test_the_oracle_reads_what_was_asked_for():
    shapes = load_dataset("shapes", size=32, scenes="one", split="test")
    images, labels, captions = evaluate.held_out(shapes, 20, 0)
    network = torch.nn.Module()
    network.num_classes = 24
    diffusion = torch.nn.Module()
    diffusion.network = network
    assert evaluate.oracle(diffusion, shapes, images, labels.tolist(), captions)["all"] == 1.0
    assert evaluate.oracle(diffusion, shapes, images, labels.flip(0).tolist(), captions)["all"] < 0.5
    network.num_classes, network.text_dim = 0, 8
    assert evaluate.oracle(diffusion, shapes, images, labels.tolist(), captions)["size"] == 1.0
    network.text_dim = 0
    assert evaluate.oracle(diffusion, shapes, images, None, None) == {"readable": 1.0}


def test_inception_is_never_fetched_in_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="--download"):
        evaluate.inception(False, "cpu")


def test_a_run_becomes_a_pretrained_model(digits_run, tmp_path):
    assert cli.main(["export", str(digits_run), "--out", str(tmp_path / "model"), "--card", "--dtype", "float16"]) == 0
    diffusion = from_pretrained(tmp_path / "model")
    average = weights(digits_run)
    assert all(torch.allclose(value, average[key], atol=1e-3) for key, value in diffusion.state_dict().items())
    card = json.loads((tmp_path / "model" / "config.json").read_text())["card"]
    assert card["steps"] == 4 and card["dataset"]["name"] == "digits" and card["training"]["batch_size"] == 8
    assert "digits" in (tmp_path / "model" / "README.md").read_text()
    opened = models.open_model([str(tmp_path / "model")], "evaluate")
    assert opened.data(Evaluate())[1] == "digits", "a pretrained folder knows its data set"
    with pytest.raises(ValueError, match="choose another folder"):
        export.export(opened, Export(out=str(tmp_path / "model")))


def test_a_run_goes_to_diffusers_and_to_the_hub(digits_run, tmp_path, monkeypatch):
    assert cli.main(["export", str(digits_run), "--out", str(tmp_path / "diffusers"), "--to", "diffusers"]) == 0
    assert (tmp_path / "diffusers" / "unet" / "config.json").is_file()
    pushed = []
    monkeypatch.setattr("minidiff.sharing.push", lambda folder, repo: pushed.append((folder, repo)))
    assert cli.main(["export", str(digits_run), "--out", str(tmp_path / "shared"), "--push", "me/digits"]) == 0
    assert pushed == [(tmp_path / "shared", "me/digits")] and (tmp_path / "shared" / "README.md").is_file()


def test_distances_are_logged_during_training(tmp_path, capsys):
    words = ["train", "digits_tiny", "--size", "8", "--steps", "2", "--batch-size", "4", "--no-progress"]
    words += ["--features", "digits", "--evaluate-num", "6", "--sampling", "steps=1"]
    words += ["--arguments", "ch=8", "num_groups=2"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    rows = (tmp_path / "run" / "evaluations.csv").read_text().splitlines()
    assert rows[0] == "step,frechet,kernel" and rows[1].startswith("2,")
    assert cli.main(["train", "emoji_tiny", "--features", "digits", "--out", str(tmp_path / "no")]) == 2
    assert "emoji is, or none" in capsys.readouterr().err
