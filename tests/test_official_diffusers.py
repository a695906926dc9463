"""Our models in diffusers' own classes: the same networks, the same paths, and the way back."""

import json

import pytest
import torch

from minidiff import Diffusion, create_model, load, sample, schedules, spacing
from minidiff.layers import timestep_embedding
from minidiff.official import ddpm
from minidiff.official.diffusers import export_diffusers, from_diffusers, to_unet2d, unet_config
from minidiff.official.diffusers_schedule import scheduler_config
from minidiff.samplers import bind, ddim
from minidiff.samplers import ddpm as ancestral

diffusers = pytest.importorskip("diffusers")  # after minidiff, which mends the import of torchvision
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel  # noqa: E402

SIZES = {
    "plain": dict(),
    "labels": dict(num_classes=3),
    "deep": dict(
        image_size=16, ch=12, ch_mult=(1, 2, 1), num_res_blocks=2, attn_resolutions=(16, 4), num_groups=3, dropout=0.1
    ),
    "grey": dict(in_channels=1, out_channels=1, ch_mult=(1,), attn_resolutions=()),
}
SCHEDULES = {
    "linear": schedules.linear(1000), "other linear": schedules.linear(100, 0.2, 9.0), "cosine": schedules.cosine(1000),
    "other cosine": schedules.cosine(500, max_beta=0.5), "scaled_linear": schedules.scaled_linear(1000),
    "sigmoid": schedules.sigmoid(200), "zero": schedules.zero_terminal_snr(schedules.linear(1000)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()


def model(schedule=None, prediction="eps", dtype=torch.float32, **overrides):
    """A small U-Net whose every weight counts: as initialised, it would return nearly nothing."""
    torch.manual_seed(0)
    network = create_model("ddpm_test", **overrides)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    arguments = network.arguments
    shape = (arguments["in_channels"], arguments["image_size"], arguments["image_size"])
    learned = arguments["out_channels"] == 2 * shape[0]
    tied = Diffusion(network, schedule or schedules.linear(1000), prediction, shape=shape, learned_range=learned)
    return tied.to(dtype).eval()


def theirs(folder, dtype=torch.float32):
    return UNet2DModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype).eval()


def relative(ours, reference):
    return ((ours - reference).abs().max() / reference.std()).item()


def inputs(diffusion, dtype, count=3):
    x = torch.randn(count, *diffusion.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    y = torch.arange(count) % (diffusion.network.num_classes + 1) if diffusion.network.num_classes else None
    return x, y


@torch.no_grad()
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 2e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", SIZES)
def test_the_network_of_diffusers_gives_our_numbers(tmp_path, size, dtype, tolerance):
    ours = model(dtype=dtype, **SIZES[size])
    export_diffusers(ours, tmp_path)
    unet, (x, y) = theirs(tmp_path, dtype), inputs(ours, dtype)
    for time in (0, 1, 371, 999):
        given = {} if y is None else {"class_labels": y}
        assert relative(unet(x, time, **given).sample, ours.network(x, torch.tensor([float(time)]), y)) < tolerance


@torch.no_grad()
@pytest.mark.parametrize("name", ["emoji-unet", "shapes-unet"])
def test_bundled_weights_walk_the_same_path(tmp_path, name):
    """Labels, v prediction and the cosine schedule, ten steps of DDIM from the same noise."""
    ours = load(name)
    export_diffusers(ours, tmp_path)
    assert not (tmp_path / "model_index.json").exists()  # no pipeline there passes labels on
    unet, scheduler = theirs(tmp_path), DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    x, y = inputs(ours, torch.float32)
    scheduler.set_timesteps(10)
    noise = x
    for step in scheduler.timesteps:
        x = scheduler.step(unet(x, step, class_labels=y).sample, step, x, use_clipped_model_output=True).prev_sample
    times = spacing(ours.schedule, 10)
    assert [round(t * 1000) - 1 for t in times[:-1]] == scheduler.timesteps.tolist()
    *_, last = ddim(bind(ours, y), ours.schedule, noise, times)
    assert relative(x, last.x) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_ddim_path_of_ten_steps(tmp_path, name, prediction):
    schedule = SCHEDULES[name]
    if name == "zero" and prediction == "eps":
        with pytest.raises(ValueError, match="alpha = 0"):
            model(schedule, prediction)
        return
    ours = model(schedule, prediction)
    export_diffusers(ours, tmp_path)
    unet, (noise, _) = theirs(tmp_path), inputs(ours, torch.float32)
    scheduler = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler", clip_sample=False)
    assert torch.allclose(scheduler.betas.double(), torch.from_numpy(schedule.betas), rtol=2e-4, atol=1e-7)
    scheduler.set_timesteps(10)
    x = noise
    for step in scheduler.timesteps:
        x = scheduler.step(unet(x, step).sample, step, x).prev_sample
    *_, last = ddim(ours.denoise, schedule, noise, spacing(schedule, 10))
    assert relative(x, last.x) < 1e-4


def test_the_pipelines_start_and_sample_as_ours(tmp_path, monkeypatch):
    """DDIMPipeline and minidiff.sample, both clipped, from one noise; DDPMPipeline runs."""
    ours = model(prediction="v")
    noise = torch.randn(2, *ours.shape, generator=torch.Generator().manual_seed(5))
    export_diffusers(ours, tmp_path / "ddim")
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "ddim")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    pictures = pipeline(2, generator, num_inference_steps=10, use_clipped_model_output=True, output_type="pt").images
    monkeypatch.setattr("minidiff.samplers.seeded_noise", lambda seeds: lambda x: noise)
    expected = sample(ours, 2, steps=10, progress=False)
    assert relative(pictures * 2 - 1, expected.clamp(-1, 1)) < 1e-4
    export_diffusers(ours, tmp_path / "ddpm", scheduler="ddpm")
    assert isinstance(diffusers.DDPMPipeline.from_pretrained(tmp_path / "ddpm").scheduler, DDPMScheduler)


@torch.no_grad()
@pytest.mark.parametrize("channels", [3, 6])
def test_ddpm_steps_with_fixed_and_learned_variance(tmp_path, channels):
    ours = model(out_channels=channels)
    export_diffusers(ours, tmp_path, scheduler="ddpm")
    unet = theirs(tmp_path)
    scheduler = DDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler", clip_sample=False)
    assert scheduler.variance_type == ("learned_range" if channels == 6 else "fixed_small")
    x, _ = inputs(ours, torch.float32)
    scheduler.set_timesteps(10)
    draws = [torch.randn(x.shape, generator=torch.Generator().manual_seed(k)) for k in range(10)]
    times, given = spacing(ours.schedule, 10), iter(draws)
    steps = ancestral(
        ours.denoise, ours.schedule, x, times, lambda x: next(given), variance="learned" if channels == 6 else "small"
    )
    for k, (step, mine) in enumerate(zip(scheduler.timesteps, steps)):
        generator = torch.Generator().manual_seed(k)
        x = scheduler.step(unet(x, step).sample, step, x, generator=generator).prev_sample
        assert relative(x, mine.x) < 1e-3  # they keep alpha-bar in float32
        x = mine.x


@pytest.mark.parametrize("name", SCHEDULES)
def test_there_and_back(tmp_path, name):
    ours = model(SCHEDULES[name], "v", **SIZES["labels" if name == "cosine" else "deep"])
    export_diffusers(ours, tmp_path)
    back = from_diffusers(tmp_path)
    assert back.schedule.name == ours.schedule.name
    assert back.schedule.betas == pytest.approx(ours.schedule.betas, rel=1e-9)
    assert (back.prediction, back.time, back.shape) == ("v", "index", ours.shape) and not back.training
    state = back.network.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.network.state_dict().items())
    assert back.network.arguments["dropout"] == ours.network.arguments["dropout"]
    assert back.network.num_classes == ours.network.num_classes


@torch.no_grad()
def test_from_diffusers_reads_what_diffusers_wrote(tmp_path):
    """Both layouts, with weights that were never ours."""
    config = {key: value for key, value in unet_config(model(num_classes=2)).items() if key[0] != "_"}
    unet = UNet2DModel(**config)
    unet.save_pretrained(tmp_path)
    DDPMScheduler(beta_schedule="scaled_linear", prediction_type="sample").save_pretrained(tmp_path)
    ours = from_diffusers(tmp_path)
    assert ours.schedule.name == "scaled_linear" and ours.prediction == "x0" and ours.network.num_classes == 2
    x, y = inputs(ours, torch.float32)
    assert relative(ours.network(x, torch.tensor([7.0]), y), unet(x, 7, class_labels=y).sample) < 1e-4


def test_the_key_map_is_the_inverse_of_that_of_ddpm():
    for size in SIZES:
        ours = model(**SIZES[size])
        config, state = unet_config(ours), ours.network.state_dict()
        there = to_unet2d(state, config)
        assert set(there) == set(UNet2DModel.from_config(config).state_dict())
        back = ddpm.convert({name.replace("class_embedding", "label"): value for name, value in there.items()})
        assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)


def test_the_time_of_their_dit_is_not_ours(tmp_path):
    """Why DiT is refused: the features of the time themselves differ, before any weight is used."""
    small = dict(num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=4, num_embeds_ada_norm=3)
    features = diffusers.DiTTransformer2DModel(**small).transformer_blocks[0].norm1.emb.time_proj(torch.tensor([500.0]))
    ours = timestep_embedding(torch.tensor([500.0]), 256, order="cos_sin", divisor="half")
    assert relative(features, ours) > 0.1
    dit = Diffusion(create_model("dit_test"), schedules.linear(1000), shape=(3, 8, 8))
    with pytest.raises(ValueError, match="dit_test.*127, not 128.*ddpm_cifar10"):
        export_diffusers(dit, tmp_path / "dit")
    assert not (tmp_path / "dit").exists()


def test_what_diffusers_cannot_say_is_refused_before_anything_is_written(tmp_path):
    network, shape = create_model("ddpm_test"), (3, 8, 8)
    refused = {
        "linear.steps=None.*continuous.*cosine.1000": Diffusion(network, schedules.linear(None), shape=shape),
        "flow.*continuous": Diffusion(network, schedules.flow(), "flow", shape=shape),
        "prediction=\"score\".*eps, x0, v": Diffusion(network, schedules.linear(), "score", shape=shape),
        "time=\"999t\".*index": Diffusion(network, schedules.linear(), time="999t", shape=shape),
        "value_range=.0, 1.": Diffusion(network, schedules.linear(), shape=shape, value_range=(0, 1)),
        "uvit_test.*ddpm_cifar10": Diffusion(create_model("uvit_test"), schedules.linear(), shape=shape),
    }
    for message, diffusion in refused.items():
        with pytest.raises(ValueError, match=message):
            export_diffusers(diffusion, tmp_path / "out")
    with pytest.raises(ValueError, match="scheduler 'ddin'.*'ddim'"):
        export_diffusers(model(), tmp_path / "out", scheduler="ddin")
    with pytest.raises(ValueError, match='learned range; use scheduler="ddpm"'):
        export_diffusers(model(out_channels=6), tmp_path / "out", scheduler="ddim")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file, change, message", [
    ("unet/config.json", {"norm_eps": 1e-5}, "norm_eps=1e-05.*not the network of DDPM"),
    ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type='timestep'.*not the network of DDPM"),
    ("unet/config.json", {"down_block_types": ["SkipDownBlock2D"]}, "SkipDownBlock2D.*not the network of DDPM"),
    ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
    ("unet/config.json", {"layers_per_block": 2}, "missing"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "laplace"}, "beta_schedule 'laplace'.*scaled_linear"),
    ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type 'flow'"),
    ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "trained_betas .2 numbers"),
])  # fmt: skip
def test_from_diffusers_refuses_other_models(tmp_path, file, change, message):
    export_diffusers(model(), tmp_path)
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        from_diffusers(tmp_path)


def test_from_diffusers_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither.*config.json.*export_diffusers"):
        from_diffusers(tmp_path)
    export_diffusers(model(), tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"num')
    with pytest.raises(ValueError, match="scheduler_config.json is truncated"):
        from_diffusers(tmp_path)


def test_a_process_without_betas_does_not_pass_for_linear(tmp_path):
    export_diffusers(model(), tmp_path)
    diffusers.ScoreSdeVeScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match="ScoreSdeVeScheduler has no betas"):
        from_diffusers(tmp_path)
    diffusers.UniPCMultistepScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path / "scheduler")
    assert from_diffusers(tmp_path).schedule.name == "scaled_linear"


def test_a_named_schedule_of_theirs_is_used_where_there_is_one():
    for name, theirs_name in (("linear", "linear"), ("cosine", "squaredcos_cap_v2"), ("sigmoid", None)):
        config = scheduler_config(model(SCHEDULES[name]))
        assert config.get("beta_schedule") == theirs_name and ("trained_betas" in config) == (theirs_name is None)


def test_a_network_that_takes_text_is_refused(tmp_path):
    network = create_model("ddpm_test", text_dim=8)
    diffusion = Diffusion(network, schedules.linear(), "eps", shape=(3, 8, 8))
    with pytest.raises(ValueError, match="text_dim=8 cannot go to diffusers"):
        export_diffusers(diffusion, tmp_path / "out")
    assert not (tmp_path / "out").exists()
