"""NCSN++'s official files: checkpoints of score_sde with their averages, EDM's names, and what is refused."""

import math

import goldens_ncsnpp
import pytest
import torch

from minidiff import load_official, schedules
from minidiff.diffusion import TIMES
from minidiff.official import from_official, released
from minidiff.official import ncsnpp as official


def official_file(name):
    """(state dict, config, our network) of a fixture, in the shape of the official files."""
    network, spec, _ = goldens_ncsnpp.official_network(name)
    state = goldens_ncsnpp.fill.make_weights(spec)
    return {key: torch.from_numpy(value) for key, value in state.items()}, spec["config"], network


def equal(network, other):
    return all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("fixture", ["scoresde_ncsnpp_ve_a", "scoresde_ddpmpp_a"])
def test_a_checkpoint_of_score_sde_gives_its_averages(tmp_path, monkeypatch, fixture):
    """Its file: the last weights of a network on several devices, and the averages of the trained ones as a list."""
    state, config, expected = official_file(fixture)
    fixed = [name for name in state if name == "all_modules.0.W"]
    trained = [name for name in state if name not in fixed]
    file = {
        "model": {"module.sigmas": torch.zeros(1000)} | {
            f"module.{name}": t if name in fixed else t + 1 for name, t in state.items()},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": [state[name] for name in trained]},
        "optimizer": {}, "step": 7,
    }  # fmt: skip
    torch.save(file, tmp_path / "checkpoint.pth")
    name = "ncsnpp_cifar10_deep" if fixed else "ddpmpp_cifar10_deep_subvp"
    arguments = official.arguments(config)
    monkeypatch.setitem(official.RELEASED, name, official.RELEASED[name] | {"network": (name.split("_")[0] + "_test",
                                                                                      arguments)})  # fmt: skip
    model = load_official(name, tmp_path / "checkpoint.pth")
    assert equal(model.network, expected) and model.shape == (3, 16, 16)
    assert model.schedule.name == ("variance_exploding" if fixed else "sub_vp")
    assert model.prediction == ("score" if fixed else "eps") and model.time == ("sigma" if fixed else "999t")
    file["ema"]["shadow_params"].pop()
    torch.save(file, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="averages for"):
        load_official(name, tmp_path / "checkpoint.pth")


def test_the_order_of_edms_names_does_not_matter():
    """A safetensors file has them sorted."""
    state, config, expected = official_file("edm_songunet_ncsnpp_a")
    assert equal(from_official("edm", dict(sorted(state.items())), config), expected)


def test_labels_and_augmentation_of_edm():
    config = dict(img_resolution=16, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8])
    bare, _, _ = official_file("edm_precond_edm_a")
    maps = {"model.map_label.weight": torch.randn(16, 10), "model.map_label.bias": torch.randn(16),
            "model.map_augment.weight": torch.randn(16, 9)}  # fmt: skip
    network = from_official("edm", bare | maps, config | {"label_dim": 10, "augment_dim": 9, "img_channels": 3})
    assert torch.equal(network.embed.label.weight, maps["model.map_label.weight"])
    assert torch.equal(network.embed.augment.weight, maps["model.map_augment.weight"])


def test_look_alikes_are_refused():
    _, edm, _ = official_file("edm_songunet_ddpmpp_a")
    for change, message in (
        ({"model_type": "DhariwalUNet"}, "ours is the network with 'SongUNet'"), ({"depth": 3}, "depth: not arguments"),
        ({"decoder_type": "skip"}, "decoder_type"), ({"resample_filter": [1, 2, 1]}, "resample_filter"),
        ({"encoder_type": "skip"}, "progressive_input"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            from_official("edm", {}, edm | change)
    _, song, _ = official_file("scoresde_ddpmpp_a")
    for change, message in (
        ({"progressive": "output_skip"}, "progressive='output_skip'"), ({"scale_by_sigma": True}, "continuous time"),
        ({"progressive_input": "input_skip"}, "progressive_input"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            from_official("score_sde", {}, song | {"model": song["model"] | change})
    with pytest.raises(ValueError, match="unexpected: weight"):
        from_official("edm", {"weight": torch.zeros(3)}, edm)
    state, _, _ = official_file("scoresde_ddpmpp_a")
    with pytest.raises(ValueError, match="not those of ncsnpp_cifar10"):
        from_official("score_sde", state, song | {"model": song["model"] | {"num_res_blocks": 2}})


def test_edms_files_are_named_with_what_they_were_trained_for():
    names = {f"edm_{body}_{data}" for body in ("ncsnpp", "ddpmpp")
             for data in ("cifar10", "cifar10_cond", "ffhq64", "afhqv2_64")}  # fmt: skip
    assert names <= set(released())


@pytest.mark.parametrize(("kind", "schedule", "time"), [
    ("edm", schedules.edm(), "log_sigma/4"), ("vp", schedules.linear(None), "999t"),
    ("iddpm", schedules.cosine(1000), "index"),
])  # fmt: skip
def test_times_are_those_of_edms_preconditionings(kind, schedule, time):
    """To float32, in which theirs are computed; iDDPM's are the nearest whole ones."""
    spec, outputs = goldens_ncsnpp.fill.load(goldens_ncsnpp.GOLDEN / f"edm_precond_{kind}_a.npz")
    sigmas = spec["inputs"]["sigma"]["values"]
    ours = [TIMES[time](schedule.inverse(-2 * math.log(sigma)), schedule) for sigma in sigmas]
    if kind == "iddpm":
        ours = [round(t) for t in ours]
    assert outputs["network_time"].tolist() == pytest.approx(ours, rel=2e-4 if kind == "vp" else 1e-6)
