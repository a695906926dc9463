"""Models on disk: what is saved comes back, in any precision; what is broken or foreign is named and refused."""

import json
import sys

import pytest
import torch

import minidiff
from minidiff import create_model, from_pretrained, save_pretrained, schedules
from minidiff.checkpoints import build, describe, load, read_card
from minidiff.diffusion import Diffusion
from minidiff.safe_files import read_tensors, write_tensors


def model(name="ddpm_test", schedule=None, prediction="v", shape=(3, 8, 8), **arguments):
    torch.manual_seed(0)
    names = ("time", "learned_range", "value_range", "latents")
    options = {key: arguments.pop(key) for key in names if key in arguments}
    network = create_model(name, **arguments)
    for weight in network.parameters():  # some start as zero, where a lost tensor would not show
        torch.nn.init.normal_(weight, std=0.1)
    return Diffusion(network, schedule or schedules.cosine(), prediction, shape=shape, **options).eval()


def answer(diffusion):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *diffusion.shape, generator=generator)
    y = torch.tensor([0, 1]) if diffusion.network.num_classes else None
    with torch.no_grad():
        return diffusion.denoise(x, 0.5, y).out


@pytest.mark.parametrize("diffusion", [
    model(),
    model(num_classes=2, dropout=0.1, ch=16),
    model(prediction="eps", schedule=schedules.linear(50), out_channels=6, learned_range=True, time="999t"),
    model(prediction="edm", schedule=schedules.edm(sigma_max=20.0), value_range=(0.0, 1.0)),
    model(prediction="flow", schedule=schedules.flow(), time="t", latents=0.18215),
    model(schedule=schedules.zero_terminal_snr(schedules.scaled_linear(100))),
    model("mlp_test", shape=(2,), schedule=schedules.cosine(None)),
], ids=["unet", "labels", "learned_range", "edm", "flow", "zero_snr", "mlp"])
def test_what_is_saved_comes_back(tmp_path, diffusion):
    save_pretrained(diffusion, tmp_path / "model", card={"dataset": "none"})
    again = from_pretrained(tmp_path / "model")
    assert torch.equal(answer(again), answer(diffusion))
    assert describe(again) == describe(diffusion) and not again.training
    assert again.shape == diffusion.shape and again.value_range == diffusion.value_range
    assert again.schedule(0.3) == diffusion.schedule(0.3)
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert read_card(tmp_path / "model") == {"dataset": "none"}


@pytest.mark.parametrize("dtype, error", [("float16", 1e-3), ("bfloat16", 1e-2), (torch.float16, 1e-3)])
def test_half_files_come_back_as_float32(tmp_path, dtype, error):
    diffusion = model()
    save_pretrained(diffusion, tmp_path / "whole")
    save_pretrained(diffusion, tmp_path / "half", dtype=dtype)
    again = from_pretrained(tmp_path / "half")
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    for mine, theirs in zip(diffusion.parameters(), again.parameters(), strict=True):
        assert (mine - theirs).abs().max() <= error * mine.abs().max()
    assert not torch.equal(answer(again), answer(diffusion))
    whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.7 * whole


def test_float16_that_overflows_and_an_unknown_dtype(tmp_path):
    diffusion = model()
    diffusion.network.conv_in.bias.data[0] = 1e6
    with pytest.raises(ValueError, match="conv_in.bias.*1e[+]06.*bfloat16"):
        save_pretrained(diffusion, tmp_path, dtype="float16")
    with pytest.raises(ValueError, match="dtype='int8'"):
        save_pretrained(diffusion, tmp_path, dtype="int8")


def test_the_same_weights_make_the_same_file(tmp_path):
    for name in "ab":
        save_pretrained(model(), tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert (tmp_path / "a/model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    save_pretrained(model(), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fails(tensors, path, metadata):
        raise OSError("disk full")

    monkeypatch.setattr("minidiff.safe_files.save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(model(ch=16), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_tied_weights_are_saved_under_both_names(tmp_path):
    weight = torch.randn(3)
    write_tensors(tmp_path / "t.safetensors", {"a": weight, "b": weight, "c": weight[:2]}, None)
    tensors, about = read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(tensors["a"], weight) and torch.equal(tensors["b"], weight)
    assert torch.equal(tensors["c"], weight[:2]) and about is None


def test_weights_of_another_architecture(tmp_path):
    save_pretrained(model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["network"]["arguments"] |= {"num_classes": 2, "ch_mult": [1, 1]}
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    write_tensors(tmp_path / "model.safetensors", tensors, None)  # as if others had written it
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        from_pretrained(tmp_path)
    message = str(error.value)
    assert str(tmp_path / "model.safetensors") in message and "ddpm_test" in message
    assert "1 missing: label.weight" in message and "unexpected" in message
    assert "of another shape: " in message and "(16, 8, 3, 3) instead of (8, 8, 3, 3)" in message
    assert len(message) < 1000 and "..." in message  # the first few names, not all


def test_weights_and_config_of_two_saves(tmp_path):
    save_pretrained(model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"prediction": "eps"}))
    with pytest.raises(ValueError, match="different models: prediction differ"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [0, 6, 2000, -1])
def test_truncated_weights(tmp_path, size):
    save_pretrained(model(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="truncated.*save_pretrained") as error:
        from_pretrained(tmp_path)
    assert str(path) in str(error.value)


def test_truncated_or_missing_config(tmp_path):
    save_pretrained(model(), tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text[:100])
    with pytest.raises(ValueError, match="config.json is truncated"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json: a model is a folder with"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("end", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickles_are_refused(tmp_path, end):
    path = tmp_path / f"weights{end}"
    path.write_bytes(b"never read")
    for given in (path, tmp_path):
        with pytest.raises(ValueError, match="pickle.*load_official.*weights_only=True.*save_pretrained") as error:
            from_pretrained(given)
        assert str(path) in str(error.value)


def test_nothing_is_fetched_unless_asked(tmp_path, monkeypatch):
    class Hub:
        asked = []

        @classmethod
        def snapshot_download(cls, name, allow_patterns):
            cls.asked.append((name, allow_patterns))
            return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    with pytest.raises(FileNotFoundError, match=r"from_pretrained\('org/name', download=True\)"):
        from_pretrained("org/name")
    with pytest.raises(FileNotFoundError, match=r"minidiff.load\(name\)"):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="there is no folder 'org/name'"):
        read_card("org/name")
    assert Hub.asked == []
    save_pretrained(model(), tmp_path, card={"encoder": "words"})
    assert read_card("org/name", download=True) == {"encoder": "words"} and Hub.asked.pop()[0] == "org/name"
    assert torch.equal(answer(from_pretrained("org/name", download=True)), answer(model()))
    assert Hub.asked == [("org/name", ["config.json", "model.safetensors"])]


def test_bundled_weights_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("minidiff.checkpoints.data_folder", lambda: tmp_path)
    save_pretrained(model(), tmp_path / "weights" / "emoji-unet", card={"steps": 7})
    save_pretrained(model(), tmp_path / "weights" / "shapes-unet")
    assert torch.equal(answer(load("emoji-unet")), answer(model()))
    assert read_card("emoji-unet") == {"steps": 7}
    with pytest.raises(ValueError, match="emoji-unt.*Did you mean 'emoji-unet'.*shapes-unet"):
        load("emoji-unt")


def test_a_network_of_ones_own_needs_a_name(tmp_path):
    diffusion = Diffusion(torch.nn.Conv2d(3, 3, 1), schedules.cosine(), "v", shape=(3, 8, 8))
    with pytest.raises(ValueError, match="Conv2d.*register_model"):
        save_pretrained(diffusion, tmp_path)


def test_build_is_the_inverse_of_describe():
    description = describe(model(num_classes=4))
    assert describe(build(description)) == description


def test_public_names():
    assert minidiff.load is load
