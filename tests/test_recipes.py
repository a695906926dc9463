"""Published recipes: they say what the papers say, build what they name, and each trains and samples on a tiny size."""

import inspect

import pytest
import torch

from minidiff import Diffusion, create_model, list_datasets, sample
from minidiff.commands import train
from minidiff.commands.data import random_text
from minidiff.commands.options import Train
from minidiff.official.loading import released
from minidiff.recipes import RECIPES, process, recipe
from minidiff.samplers import SAMPLERS
from minidiff.schedules import make_schedule
from minidiff.text import padded
from minidiff.training import Trainer

# of the sweeps over sizes and patches, one each is enough
SMOKE = [name for name in RECIPES if not name.startswith(("dit_", "sit_"))] + ["dit_xl_2", "sit_b_4"]

FACTS = {  # section of the facts -> recipe -> values of its training
    "conv 1.2": {"ddpm_cifar10": dict(lr=2e-4, warmup=5000, clip=1.0, ema=0.9999, batch_size=128, decay=None)},
    "conv 2.3": {
        "iddpm_cifar10": dict(lr=1e-4, batch_size=128, steps=500_000),
        "iddpm_imagenet64_cond": dict(lr=3e-4, batch_size=2048, steps=250_000),
        "adm_imagenet64": dict(lr=3e-4, batch_size=2048, steps=540_000, betas=(0.9, 0.999), amp="fp16"),
        "adm_imagenet512": dict(lr=1e-4, batch_size=256, steps=1_940_000, ema=0.9999),
    },
    "conv 6.2": {"ncsnpp_cifar10": dict(lr=2e-4, clip=1.0, ema=0.999, steps=950_000),
                 "ddpmpp_cifar10": dict(warmup=5000, ema=0.9999, steps=1_300_000)},
    "transformers 1.4": {"genvit_cifar10": dict(lr=1e-3, weight_decay=0.05, final_lr=1e-6, ema=0.999, decay="cosine")},
    "transformers 2.4": {
        "uvit_cifar10": dict(lr=2e-4, betas=(0.99, 0.999), warmup=2500, weight_decay=0.03, steps=500_000),
        "uvit_imagenet64_m": dict(lr=3e-4, betas=(0.99, 0.99), warmup=5000, batch_size=1024, steps=300_000),
        "uvit_imagenet256_l": dict(p_uncond=0.15, steps=300_000), "uvit_imagenet256_h": dict(p_uncond=0.1),
        "uvit_coco": dict(betas=(0.9, 0.9), batch_size=256, steps=1_000_000),
    },
    "transformers 3.2": {"iuvit_church128": dict(steps=450_000), "iuvit_t2i_64": dict(lr=1e-4, steps=150_000)},
    "transformers 4.1": {"ascend_t2i_128": dict(lr=1.2e-4)},
    "transformers 5.6": {
        "dit_xl_2": dict(lr=1e-4, warmup=0, clip=None, weight_decay=0.0, batch_size=256, steps=7_000_000, p_uncond=0.1),
        "dit_xl_2_512": dict(steps=3_000_000), "dit_s_8": dict(steps=400_000, ema=0.9999),
    },
    "transformers 6": {"diffit_cifar10": dict(lr=1e-3, batch_size=512, steps=200_000),
                       "diffit_xl_256": dict(lr=3e-4, batch_size=256), "diffit_xl_512": dict(lr=1e-4, batch_size=512)},
}  # fmt: skip


@pytest.mark.parametrize("section", FACTS)
def test_values_are_those_of_the_papers(section):
    for name, values in FACTS[section].items():
        assert {key: RECIPES[name].training[key] for key in values} == values, name
        assert not set(values) & set(RECIPES[name].guesses), f"{name}: {section} gives what is marked as a guess"


def test_edm_counts_pictures():
    for name in ("edm_ddpmpp_cifar10", "edm_ncsnpp_cifar10_cond"):
        training = RECIPES[name].training
        assert training["steps"] * training["batch_size"] == 200e6 and training["ema_halflife"] == 500_000
        assert abs(training["warmup"] * training["batch_size"] - 10e6) < training["batch_size"]
    training = RECIPES["edm_adm_imagenet64"].training
    assert abs(training["steps"] * training["batch_size"] - 2500e6) < training["batch_size"]


def test_guesses_are_marked_where_papers_are_silent():
    for name in ("iuvit_cifar10", "iuvit_church256", "ascend_cifar10", "ascend_t2i_64"):
        assert {"batch_size", "ema", "weight_decay"} <= set(RECIPES[name].guesses), name
    assert "lr" in RECIPES["iuvit_cifar10"].guesses and "lr" not in RECIPES["iuvit_t2i_64"].guesses
    assert "steps" in RECIPES["ascend_cifar10"].guesses and "steps" not in RECIPES["iuvit_cifar10"].guesses
    assert not RECIPES["uvit_cifar10"].guesses and not RECIPES["dit_xl_2"].guesses
    assert any("augmentation" in what for what in RECIPES["edm_ddpmpp_cifar10"].differs)


def test_schedule_prediction_and_time_are_those_of_the_published_weights():
    for name, (_, trained) in released().items():
        if name in RECIPES:
            mine = process(name)
            assert all(mine[key] == trained[key] for key in ("schedule", "time")), name
            assert mine.get("latents") == trained.get("latents"), name
    assert process("uvit_imagenet256_h")["time"] == "index_from_1" and process("uvit_imagenet256_l")["time"] == "999t"
    assert process("dit_s_8")["learned_range"] and process("sit_l_4")["prediction"] == "flow"
    assert "learned_range" not in process("dit_tiny") and process("hit_tiny")["prediction"] == "v"


@pytest.mark.parametrize("name", RECIPES)
def test_each_is_made_of_things_that_exist(name):
    one, known = RECIPES[name], inspect.signature(Trainer).parameters
    assert set(one.training) <= set(known) and one.sampling["sampler"] in SAMPLERS
    assert (one.data in list_datasets()) if one.data else one.wants
    with torch.device("meta"):  # the published size, without its memory
        network = create_model(one.network, **one.arguments)
    how = process(one.network) | one.process
    schedule, arguments = how.pop("schedule")
    Diffusion(network, make_schedule(schedule, **arguments), **how, shape=(network.arguments["in_channels"], 8, 8))
    assert one.size == (network.arguments.get("img_size") or network.arguments["image_size"])
    places = {*inspect.signature(Train).parameters, *network.arguments}
    assert set(one.guesses) <= places, set(one.guesses) - places
    assert one.labels or not network.arguments.get("num_classes"), "a network with labels, trained without"


@pytest.mark.parametrize("name", SMOKE)
def test_each_trains_and_samples_at_a_tiny_size(name, tmp_path):
    options, _ = train.parse([name, "--smoke", "--out", str(tmp_path)])
    history = train.train(options)
    assert history.step == 2 and history.losses.isfinite().all()
    network, y = history.ema.network, None
    if getattr(network, "num_classes", 0):
        y = [0, 1]
    elif getattr(network, "text_dim", 0):
        y = random_text(["one", "two"])
        y = padded(y, network.arguments["num_text_tokens"]) if "num_text_tokens" in network.arguments else y
    pictures = sample(history.ema, 2, y=y, progress=False, **options.sampling)
    assert pictures.shape == (2, *history.ema.shape) and pictures.isfinite().all()
    guided = "guidance" in options.sampling
    assert not guided or y is not None, "guidance of a network that is told nothing"


def test_a_network_without_a_recipe_has_defaults():
    one = recipe("uvit_tiny")
    assert one.network == "uvit_tiny" and one.data == "emoji" and one.size == 16
    assert recipe("dit_test").data == "digits" and recipe("iuvit_church256_wide").wants
    assert train.parse(["iuvit_church256_wide"])[0].size == 256
    with pytest.raises(ValueError, match="uvit_cifar10"):
        recipe("uvit_cifar")
    with pytest.raises(ValueError, match="unknown recipe or network 'mlp_2d'"):
        recipe("mlp_2d")
