"""Samplers: orders of convergence on a Gaussian, seeds, guidance, and what is refused."""

import math

import numpy as np
import orders
import pytest
import torch

import minidiff
from minidiff import Diffusion, create_model, sample, schedules, seeded_noise
from minidiff.guidance import classifier_free, condition
from minidiff.reflow import reflow_pairs
from minidiff.samplers import SAMPLERS, ddim, ddpm
from minidiff.scorers import Classifier
from minidiff.spacings import spacing


@pytest.fixture(scope="module")
def diffusion():
    torch.manual_seed(0)
    network = create_model("ddpm_test", num_classes=4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # the fresh network returns nearly nothing
    return Diffusion(network, schedules.cosine(), "v", shape=(3, 8, 8))


@pytest.mark.parametrize("name, expected", [("ddim", 1), ("ddim, eta 1", 1), ("ddpm, small", 1), ("ddpm, large", 1)])
def test_order_of_convergence_on_a_gaussian(name, expected):
    assert orders.measured_order(name) == pytest.approx(expected, abs=0.15)


def test_eta_one_in_every_step_is_ddpm():
    denoise, schedule = orders.gaussian_denoiser(schedules.linear()), schedules.linear()
    x, times = torch.randn(5, 1, 2, 2).double(), spacing(schedules.linear(), 20)
    runs = []
    for sampler, options in ((ddim, {"eta": 1.0}), (ddpm, {"variance": "small"})):
        runs.append([step.x for step in sampler(denoise, schedule, x, times, seeded_noise(range(5)), **options)])
    torch.testing.assert_close(torch.stack(runs[0]), torch.stack(runs[1]), rtol=1e-10, atol=1e-10)


def test_deterministic_sampler_draws_no_noise_and_stochastic_ones_once_a_step():
    calls = []

    def noise(x):
        calls.append(len(x))
        return torch.zeros_like(x)

    schedule = schedules.linear()
    denoise, times = orders.gaussian_denoiser(schedule), spacing(schedule, 7)
    x = torch.zeros(2, 1, 2, 2)
    list(ddim(denoise, schedule, x, times, noise))
    assert calls == []
    list(ddim(denoise, schedule, x, times, noise, eta=0.5))
    list(ddpm(denoise, schedule, x, times, noise))
    assert calls == [2] * 14


def test_inversion_comes_back():
    schedule = schedules.linear()
    denoise = orders.gaussian_denoiser(schedule)
    up = [i / 1000 for i in range(1, 1001)]
    x = torch.randn(4, 1, 2, 2).double()
    noise = list(ddim(denoise, schedule, x, up))[-1].x
    back = list(ddim(denoise, schedule, noise, up[::-1]))[-1].x
    assert (back - x).abs().max() < 0.02


def test_noise_is_bit_equal_for_any_batch_size():
    pairs = [(7, i) for i in range(16)]
    whole = seeded_noise(pairs)
    first, second = whole(torch.empty(16, 3, 8, 8)), whole(torch.empty(16, 3, 8, 8))
    assert not torch.equal(first, second)
    for size in (1, 3):
        for start in range(0, 16, size):
            chosen = pairs[start : start + size]
            part = seeded_noise(chosen)(torch.empty(len(chosen), 3, 8, 8))
            assert torch.equal(part, first[start : start + size])
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(seeded_noise(pairs)(torch.empty(16, 3, 8, 8, dtype=torch.float32)), first)
    finally:
        torch.set_default_dtype(torch.float32)
    assert abs(first.mean()) < 0.05 and first.std() == pytest.approx(1, abs=0.05)


# What draws no noise on the way; the eps forms of DPM-Solver cannot start from pure noise.
STOCHASTIC = ["ddpm", "churn", "euler_maruyama", "reverse_diffusion", "predictor_corrector", "dpmpp_2m_sde"]


@pytest.mark.parametrize("schedule, sampler", [
    *((schedule, sampler) for schedule in (schedules.flow(), schedules.edm(), schedules.cosine(1),
                                           schedules.zero_terminal_snr(schedules.linear(100)))
      for sampler in ("ddim", "ddpm", "churn", "dpmpp_2m", "dpmpp_3s", "unipc")),
    *((schedule, sampler) for schedule in (schedules.flow(), schedules.edm())  # where x0 is straight ahead in t
      for sampler in ("euler", "heun", "midpoint")),
], ids=str)  # fmt: skip
def test_one_step_on_every_kind_of_schedule_is_the_prediction(schedule, sampler):
    network = create_model("ddpm_test", in_channels=1, out_channels=1)
    diffusion = Diffusion(network, schedule, "v", shape=(1, 8, 12))
    seen = []
    pictures = sample(diffusion, 3, sampler=sampler, steps=1, batch_size=2, progress=False, on_step=seen.append)
    assert torch.equal(pictures, torch.cat([step.x0 for step in seen])) and pictures.isfinite().all()


@pytest.mark.parametrize(
    "options", [{"sampler": "ddpm", "variance": "learned"}, *({"sampler": name} for name in SAMPLERS)], ids=str
)
def test_nothing_waits_for_the_device_and_no_float64_is_on_it(options):
    """On the meta device a value that the host asks for is an error."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoDouble(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            assert not (isinstance(out, torch.Tensor) and out.is_meta and out.dtype == torch.float64), func
            return out

    with torch.device("meta"):
        network = create_model("ddpm_test", out_channels=6)
    diffusion = Diffusion(network, schedules.cosine(), "eps", learned_range=True, shape=(3, 8, 8))
    diffusion._checked = True  # the first batch may wait
    with NoDouble():
        assert sample(diffusion, 2, steps=3, progress=False, **options).is_meta
        assert diffusion.loss(torch.empty(2, 3, 8, 8, device="meta"), weight="min_snr").is_meta


def test_a_network_without_parameters_can_be_sampled():
    class Nothing(torch.nn.Module):
        def forward(self, x, time, y=None):
            return torch.zeros_like(x)

    diffusion = Diffusion(Nothing(), schedules.flow(), "x0", shape=(2,))
    assert torch.equal(sample(diffusion, 3, steps=2, progress=False), torch.zeros(3, 2))


@pytest.mark.parametrize("options", [
    {"guidance": 3.0}, {"guidance": 3.0, "interval": (0.2, 0.8), "rescale": 0.7, "negative": 2}, {"clipped": "dynamic"},
    *({"sampler": name} for name in SAMPLERS),
], ids=str)  # fmt: skip
def test_pictures_do_not_depend_on_the_batch_size(diffusion, options):
    runs = [
        sample(diffusion, 16, y=torch.arange(16) % 4, steps=8, batch_size=size, progress=False, **options)
        for size in (1, 3, 16)
    ]
    # Two work on x / alpha, which is 5e-5 at t = 1 here: rounding grows
    tolerance = 1e-3 if options.get("sampler") in ("churn", "dpm_2s") else 1e-4
    for other in runs[1:]:
        assert (other - runs[0]).abs().max() < tolerance
    assert (sample(diffusion, 16, y=1, steps=8, seed=1, progress=False) - runs[0]).abs().max() > 0.1


@pytest.mark.parametrize("sampler, evaluations", [
    ("ddim", 6), ("heun", 11), ("midpoint", 11), ("churn", 11), ("predictor_corrector", 12), ("dpmpp_2m", 6),
    ("dpmpp_3s", 6), ("dpm_2s", 6), ("unipc", 6),
])  # fmt: skip
def test_evaluations_are_counted_and_printed(diffusion, sampler, evaluations, capsys):
    calls = []
    hook = diffusion.network.register_forward_hook(lambda *_: calls.append(1))
    sample(diffusion, 3, y=0, steps=6, sampler=sampler, batch_size=2)
    hook.remove()
    bar = "".join(capsys.readouterr())  # on stdout if another test has loaded a notebook's kernel
    assert len(calls) == 2 * evaluations  # two batches
    assert f"{evaluations} evaluations]" in bar and "12/12" in bar


def test_gradient_pulls_each_picture_to_its_own_target(diffusion):
    """A made-up log-probability, the squared distance from a grey value, in the score form and in the ancestral one."""

    def log_prob(x_t, t, target):
        return -(x_t - target.view(-1, 1, 1, 1)).square().flatten(1).sum(1) / 2

    gradient = minidiff.gradient_of(log_prob, 5.0)
    targets = [0.8, -0.8, 0.8]
    for sampler in ("ddim", "ddpm", "dpmpp_2m", "euler_maruyama"):
        settings = dict(y=0, steps=8, sampler=sampler, gradient=gradient, progress=False)
        together = sample(diffusion, 3, target=torch.tensor(targets), **settings)
        apart = sample(diffusion, 3, target=targets, batch_size=2, **settings)
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
        means = together.flatten(1).mean(1)
        free = sample(diffusion, 3, y=0, steps=8, sampler=sampler, progress=False).flatten(1).mean(1)
        assert ((means - free) * torch.tensor(targets) > 0).all()
    with pytest.raises(ValueError, match="target must be one for all pictures or 3 of them, got 2"):
        sample(diffusion, 3, target=targets[:2], **settings)


def test_gradient_of_a_scorer_on_another_schedule_is_refused(diffusion):
    def scorer(schedule):
        return Classifier(create_model("classifier_test", num_classes=4), schedule, time="t", shape=(3, 8, 8))

    settings = dict(y=0, steps=2, target=1, progress=False)
    for schedule in (schedules.cosine(), schedules.cosine(None), schedules.cosine(400)):
        sample(diffusion, 2, gradient=minidiff.gradient_of(scorer(schedule).log_prob), **settings)
    for schedule in (schedules.linear(), schedules.flow(), schedules.edm()):
        with pytest.raises(ValueError, match=f"from a model on {schedule.name}.*, and this one is on cosine"):
            sample(diffusion, 2, gradient=minidiff.gradient_of(scorer(schedule).log_prob), **settings)


def test_gradient_is_of_labels_or_words_as_given(diffusion):
    seen = []

    def gradient(x_t, t, target):
        seen.append(target)
        return torch.zeros_like(x_t)

    for target in (2, [0, 1, 2], "a cat", ["a", "b", "c"], np.array([0, 1, 2]), range(3), torch.tensor(2), np.int64(2)):
        sample(diffusion, 3, y=0, steps=1, gradient=gradient, target=target, progress=False)
    assert [torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b for a, b in zip(seen, [
        torch.tensor([2, 2, 2]), torch.tensor([0, 1, 2]), ["a cat"] * 3, ["a", "b", "c"],
        *[torch.tensor([0, 1, 2])] * 2, *[torch.tensor([2, 2, 2])] * 2,
    ])] == [True] * 8  # fmt: skip


def test_classes_of_a_classifier_are_checked_before_it_runs(diffusion):
    from minidiff.scorers import Classifier

    classifier = Classifier(create_model("classifier_test"), diffusion.schedule, shape=(3, 8, 8))
    classes, gradient = classifier.network.num_classes, minidiff.gradient_of(classifier.log_prob)
    assert sample(diffusion, 2, y=0, steps=1, gradient=gradient, target=classes - 1, progress=False).isfinite().all()
    for target in (classes, -1, 0.5):
        with pytest.raises(ValueError, match=f"target: classes must be whole numbers from 0 to {classes - 1}, got"):
            sample(diffusion, 2, y=0, steps=1, gradient=gradient, target=target, progress=False)
    with pytest.raises(ValueError, match="target is missing"):
        sample(diffusion, 2, y=0, steps=1, gradient=gradient, progress=False)


def test_a_learned_variance_is_what_ddpm_takes_by_default():
    torch.manual_seed(0)
    network = create_model("ddpm_test", out_channels=6)
    model = Diffusion(network, schedules.linear(), learned_range=True, shape=(3, 8, 8))
    torch.nn.init.normal_(model.network.conv_out.weight)
    runs = [sample(model, 2, sampler="ddpm", steps=3, progress=False, **options)
            for options in ({}, {"variance": "learned"}, {"variance": "small"})]  # fmt: skip
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_text_is_a_condition_like_a_label():
    torch.manual_seed(0)
    network = create_model("uvit_test", text_dim=6, num_text_tokens=5)
    diffusion = Diffusion(network, schedules.cosine(), "v", shape=network.shape)
    mask = torch.arange(5) < torch.tensor([[2], [3], [5]])
    y = minidiff.Text(torch.randn(3, 5, 6), mask)
    runs = [sample(diffusion, 3, y=y, steps=3, guidance=2.0, batch_size=size, progress=False) for size in (2, 3)]
    torch.testing.assert_close(*runs, atol=1e-4, rtol=1e-4)
    assert sample(diffusion, 2, y=y[:1], steps=2, progress=False).shape == (2, *network.shape)
    with pytest.raises(ValueError, match="y must hold one text, or 4 of them, got 3"):
        sample(diffusion, 4, y=y, steps=2, progress=False)


def test_reflow_pairs_are_the_ends_of_one_path(diffusion):
    x0, eps = reflow_pairs(diffusion, 5, y=1, sampler="ddim", steps=6, seed=3, batch_size=2, progress=False)
    assert abs(eps.std() - 1) < 0.1
    denoise = condition(diffusion.denoise, torch.ones(5, dtype=torch.int64))
    *_, last = ddim(denoise, diffusion.schedule, eps, spacing(diffusion.schedule, 6))
    torch.testing.assert_close(last.x.clamp(-1, 1), x0, atol=1e-4, rtol=1e-4)
    assert last.x.abs().max() > 1.1
    assert diffusion.loss(x0, torch.ones(5, dtype=torch.int64), eps=eps).shape == (5,)
    with pytest.raises(ValueError, match="without noise on the way, got eta=1.0"):
        reflow_pairs(diffusion, 5, y=1, sampler="ddim", eta=1.0)
    for sampler in STOCHASTIC:
        with pytest.raises(ValueError, match="unknown sampler without noise of its own"):
            reflow_pairs(diffusion, 5, y=1, sampler=sampler)
    edm = Diffusion(diffusion.network, schedules.edm(), "edm", shape=(3, 8, 8))
    with pytest.raises(ValueError, match=r"unit noise, edm.* does not; use flow\(\)"):
        reflow_pairs(edm, 5, y=1)


def test_clipping_keeps_to_the_value_range():
    torch.manual_seed(0)
    network = create_model("ddpm_test")
    wide = Diffusion(network, schedules.cosine(), "v", shape=(3, 8, 8), value_range=(0.0, 255.0))
    for clipped in (True, "dynamic"):
        pictures = sample(wide, 2, steps=3, clipped=clipped, progress=False)
        assert pictures.min() >= 0 and pictures.max() > 1
    latent = Diffusion(network, schedules.cosine(), "v", shape=(3, 8, 8), latents=0.18)
    with pytest.raises(ValueError, match="for pixels, and this model works on latents"):
        sample(latent, 2, steps=3, clipped="dynamic", progress=False)


def test_sample_sees_every_step_and_gives_training_mode_back(diffusion):
    diffusion.train()
    seen = []
    pictures = sample(diffusion, 5, y=0, steps=4, batch_size=2, progress=False, on_step=seen.append)
    assert diffusion.training and pictures.shape == (5, 3, 8, 8) and not pictures.requires_grad
    assert [step.t for step in seen] == pytest.approx([0.75, 0.5, 0.25, 0.0] * 3)
    torch.testing.assert_close(torch.cat([seen[3].x, seen[7].x, seen[11].x]), pictures)
    assert max(step.x0.abs().max() for step in seen) <= 1
    diffusion.network.eval()  # a trained network in a new Diffusion
    with pytest.raises(RuntimeError, match="stop"):
        sample(diffusion, 1, y=0, steps=2, progress=False, on_step=stop)
    assert diffusion.training and not any(module.training for module in diffusion.network.modules())


def stop(step):
    raise RuntimeError("stop")


def test_inputs_are_repeated_under_guidance_and_none_stays_none():
    seen = {}

    def denoise(x, t, y, **inputs):
        seen.update(inputs)
        return minidiff.Prediction("x0", x, x, 0.6, 0.8)

    y, low = torch.tensor([0, 1]), torch.randn(2, 3, 4, 4)
    classifier_free(denoise, y, 2.0, y + 3, low_res=low, mask=None)(torch.randn(2, 3, 8, 8), 0.5)
    assert seen["mask"] is None and torch.equal(seen["low_res"], torch.cat([low, low]))


def test_guidance_of_one_is_the_conditional_model_and_null_is_its_own_condition(diffusion):
    x, y = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2])
    null = diffusion.network.null(y)
    conditional = condition(diffusion.denoise, y)(x, 0.5).out
    unconditional = condition(diffusion.denoise, null)(x, 0.5).out
    for scale in (0.0, 1.0, 2.5):
        guided = classifier_free(diffusion.denoise, y, scale, null)(x, 0.5)
        torch.testing.assert_close(guided.out, unconditional + scale * (conditional - unconditional))
    assert (conditional - unconditional).abs().max() > 1e-3


def test_guidance_covers_all_channels_and_keeps_the_variance_of_the_condition():
    network = create_model("ddpm_test", in_channels=4, out_channels=8, num_classes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    diffusion = Diffusion(network, schedules.linear(), learned_range=True, shape=(4, 8, 8))
    x, y = torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    plain, guided = diffusion.denoise(x, 0.5, y), classifier_free(diffusion.denoise, y, 4.0, network.null(y))(x, 0.5)
    torch.testing.assert_close(guided.v_range, plain.v_range)
    assert ((guided.out - plain.out).abs().amax((0, 2, 3)) > 1e-4).all()


def test_learned_variance_lies_between_small_and_large():
    schedule = schedules.linear()
    exact, times = orders.gaussian_denoiser(schedule), spacing(schedule, 10)
    x = torch.randn(3, 1, 2, 2).double()

    def says(value):
        def denoise(x, t):
            prediction = exact(x, t)
            prediction.v_range = torch.full_like(x, value)
            return prediction

        return denoise

    def run(denoise, variance):
        return torch.stack([s.x for s in ddpm(denoise, schedule, x, times, seeded_noise(range(3)), variance=variance)])

    torch.testing.assert_close(run(says(-1.0), "learned"), run(exact, "small"))
    torch.testing.assert_close(run(says(1.0), "learned"), run(exact, "large"))


def test_no_operation_of_the_sampler_loop_is_wasted():
    """Operations that a step adds to the network's own: a deterministic count, the same on every machine."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        ops = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.ops += 1
            return func(*args, **(kwargs or {}))

    schedule, x = schedules.linear(), torch.zeros(2, 3, 8, 8)

    def denoise(x, t):
        return minidiff.Prediction("x0", x, x, *schedule(t))

    for sampler, most in ((ddim, 2), (ddpm, 3)):
        with Count() as count:
            list(sampler(denoise, schedule, x, spacing(schedule, 10), lambda x: x))
        assert count.ops <= 10 * most + 2


@pytest.mark.parametrize(
    "options, says",
    [
        ({"sampler": "dimm"}, "'ddim'"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 1001}, "at most 1000"),
        ({"etta": 1.0}, "'eta'"),
        ({"sampler": "ddpm", "variance": "learned"}, "learned range"),
        ({"y": None}, "labels are missing"),
        ({"y": 9}, "from 0 to 3"),
        ({"y": [0, 1]}, r"shape \(3,\)"),
        ({"y": "cat"}, "got 'cat'"),
        ({"y": [0.0, 1.0, 2.0]}, "int64 tensor .* got torch.float32"),
        ({"num": 0}, "num must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"sampler": "ddpm", "variance": "smal"}, "'small'"),
        ({"spacing": "unifrm"}, "'uniform'"),
        ({"spacing": [1.0, 0.5, 0.0]}, r"unknown spacing \[1.0, 0.5, 0.0\]"),
        ({"t_end": "0"}, "t_end must be at least 0 and below 1, got '0'"),
        ({"t_end": 1.5}, "t_end must be at least 0 and below 1"),
        ({"interval": (0.2, 0.8)}, "interval: a change of classifier-free guidance, and guidance=1 is none"),
        ({"guidance": 2.0, "interval": (0.8, 0.2)}, "interval"),
        ({"guidance": -1.0}, "scale"),
        ({"guidance": 2.0, "negative": [0, 1]}, "negative: labels must have shape"),
        ({"guidance": 2.0, "negative": 9}, r"negative: labels must be from 0 to 3 .*got 9 to 9"),
        ({"clipped": "dynamc"}, "clipped must be True, False or \"dynamic\", got 'dynamc'"),
        ({"clipped": (-2, 2)}, r"clipped must be .* got \(-2, 2\)"),
        ({"target": 1}, "pass gradient=..., too"),
        ({"gradient": 2.0}, r"gradient must be a function \(x_t, t, target\), .* got 2.0"),
        ({"gradient": print, "target": torch.tensor([1, 2])}, "target must be one for all .* or 3 of them, got 2"),
        ({"eta": -1.0}, "eta must be at least 0, got -1.0"),
        ({"eta": math.nan}, "eta must be at least 0, got nan"),
        ({"guidance": 2.0, "resale": 0.7}, "'rescale'"),
        ({"sampler": "heun", "eta": 1.0}, "unknown option of heun 'eta'"),
    ],
)
def test_bad_values_are_named(diffusion, options, says):
    with pytest.raises(ValueError, match=says):
        sample(diffusion, **{"num": 3, "y": 0, "steps": 2, "progress": False, **options})


def test_guidance_without_a_condition_is_refused():
    diffusion = Diffusion(create_model("ddpm_test"), schedules.cosine(), "v", shape=(3, 8, 8))
    with pytest.raises(ValueError, match="needs a condition"):
        sample(diffusion, 2, guidance=2.0, steps=2, progress=False)
    plain = sample(diffusion, 2, steps=2, progress=False)
    assert torch.equal(sample(diffusion, 2, steps=2, interval=None, rescale=0.0, progress=False), plain)  # none of it
    with pytest.raises(ValueError, match="eta=0.5 adds noise: pass its source"):
        list(ddim(diffusion.denoise, diffusion.schedule, torch.zeros(1, 3, 8, 8), [1.0, 0.0], eta=0.5))
    with pytest.raises(ValueError, match="one for each"):
        seeded_noise([1, 2])(torch.empty(3, 2))
    assert math.isfinite(sample(diffusion, 2, steps=2, progress=False).sum())
