"""Published weights: names and configs of the official code become ours, and what does not fit is refused."""

from argparse import Namespace

import goldens
import pytest
import torch

import minidiff
from minidiff import create_model, schedules
from minidiff.official import ddpm, dit, from_official, load_official, released
from minidiff.official.loading import tie
from minidiff.safe_files import write_tensors
from minidiff.scorers import Classifier

CONFIG = {
    "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6, "attention_head_dim": None,
    "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def official_state(name):
    spec, _ = goldens.fill.load(goldens.GOLDEN / f"{name}.npz")
    return spec, {key: torch.from_numpy(value) for key, value in goldens.fill.make_weights(spec).items()}


def old_names(state):
    result = {}
    for name, tensor in state.items():
        for new, old in OLD.items():
            name = name.replace(f".{new}.", f".{old}.")
        result[name] = tensor
    return result


def test_old_and_new_key_names_are_the_same_network():
    spec, state = official_state("diffusers_unet2d_ddpm_a")
    assert set(old_names(state)) != set(state)
    new, old = (from_official(spec["family"], weights, spec["config"]) for weights in (state, old_names(state)))
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))


def test_published_configs_give_the_published_models():
    with torch.device("meta"):
        ours, theirs = create_model("ddpm_cifar10"), create_model("ddpm_cifar10", **ddpm.arguments(CONFIG))
        large = create_model("ddpm_lsun256")
    assert describe_shapes(ours) == describe_shapes(theirs)
    widths = [128, 128, 256, 256, 512, 512]
    down = ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"]
    up = ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4
    config = CONFIG | {"sample_size": 256, "block_out_channels": widths, "down_block_types": down, "up_block_types": up}
    with torch.device("meta"):
        assert describe_shapes(large) == describe_shapes(create_model("ddpm_lsun256", **ddpm.arguments(config)))


def describe_shapes(network):
    return {name: tuple(weight.shape) for name, weight in network.named_parameters()}


@pytest.mark.parametrize("kind", ["safetensors", "bin", "folder"])
def test_load_official(tmp_path, monkeypatch, kind):
    """The network of the fixture, registered for the moment as a published one, from each kind of file."""
    spec, state = official_state("diffusers_unet2d_ddpm_a")
    expected = from_official(spec["family"], state, spec["config"])
    arguments = ddpm.arguments(spec["config"])
    monkeypatch.setitem(ddpm.RELEASED, "ddpm_test", ddpm.TRAINED | {"shape": (3, 16, 16)})
    monkeypatch.setattr("minidiff.backbones.create_model", lambda name: create_model(name, **arguments))
    path = tmp_path / ("weights.bin" if kind == "bin" else "diffusion_pytorch_model.safetensors")
    if kind == "bin":
        torch.save(old_names(state), path)
    else:
        write_tensors(path, state, None)
    diffusion = load_official("ddpm_test", tmp_path if kind == "folder" else path)
    assert all(torch.equal(a, b) for a, b in zip(diffusion.network.parameters(), expected.parameters(), strict=True))
    assert (diffusion.prediction, diffusion.time, diffusion.shape) == ("eps", "index", (3, 16, 16))
    assert repr(diffusion.schedule) == repr(schedules.linear(1000))


def test_every_published_model_is_tied_to_what_it_was_trained_with():
    """All but the weights: the schedule, the time and the latents of each, on networks without memory."""
    for name, (_, trained) in released().items():
        ours, changes = trained.get("network", (name, {}))
        with torch.device("meta"):
            network = create_model(ours, **changes)
        model = tie(network, trained)
        assert len(model.shape) == 3
        if "classifier" in name:
            assert model.kind == "classifier" and isinstance(model, Classifier)
            continue
        assert model.prediction == {"sit": "flow", "edm": "edm", "ncsnpp": "score"}.get(name.split("_")[0], "eps")
        assert (model.latents is not None) == (model.shape[0] == 4), name
    with pytest.raises(ValueError, match="'uvit_cifar'.*Did you mean 'uvit_cifar10'"):
        load_official("uvit_cifar", "x")


def test_load_official_refuses(tmp_path):
    with pytest.raises(ValueError, match="'ddpm_cifar'.*Did you mean 'ddpm_cifar10'"):
        load_official("ddpm_cifar", tmp_path)
    with pytest.raises(FileNotFoundError, match="diffusion_pytorch_model.safetensors"):
        load_official("ddpm_cifar10", tmp_path)
    path = tmp_path / "w.bin"
    torch.save({"weight": torch.zeros(100)}, path)
    with pytest.raises(ValueError, match="w.bin are not those of ddpm_cifar10.*missing.*1 unexpected: weight"):
        load_official("ddpm_cifar10", path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="w.bin is truncated"):
        load_official("ddpm_cifar10", path)


def test_a_file_of_the_training_script_of_dit_is_read(tmp_path, monkeypatch):
    """A dict with averaged weights, and with its settings as a Namespace, which is none of torch's own safe types."""
    spec, state = official_state("dit_a")
    expected, arguments = from_official("dit", state, spec["config"]), dit.arguments(spec["config"])
    monkeypatch.setitem(dit.RELEASED, "dit_test", dit.TRAINED)
    monkeypatch.setattr("minidiff.backbones.create_model", lambda name: create_model(name, **arguments))
    file = {"ema": state, "model": {}, "opt": {}, "args": Namespace(model="DiT-S/2", lr=1e-4)}
    torch.save(file, tmp_path / "0400000.pt")
    diffusion = load_official("dit_test", tmp_path / "0400000.pt")
    assert all(torch.equal(a, b) for a, b in zip(diffusion.network.parameters(), expected.parameters(), strict=True))
    assert diffusion.learned_range and diffusion.latents == 0.18215


def test_load_official_runs_no_code_of_a_pickle(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    torch.save({"weight": Evil()}, tmp_path / "w.bin")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_official("ddpm_cifar10", tmp_path / "w.bin")
    assert not (tmp_path / "harm").exists()


def test_from_official_refuses_look_alikes():
    spec, state = official_state("diffusers_unet2d_ddpm_a")
    for key, value in [("flip_sin_to_cos", True), ("norm_eps", 1e-5), ("downsample_padding", 1), ("freq_shift", 0)]:
        with pytest.raises(ValueError, match=f"{key}={value}.*not the network of DDPM"):
            from_official(spec["family"], state, spec["config"] | {key: value})
        with pytest.raises(ValueError, match=f"{key}="):  # left out, it means the same
            from_official(spec["family"], state, {k: v for k, v in spec["config"].items() if k != key})
    with pytest.raises(ValueError, match="family of official weights 'diffusers'"):
        from_official("diffusers", state, spec["config"])


def test_public_name():
    assert minidiff.load_official is load_official
