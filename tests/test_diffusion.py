"""Diffusion and Prediction: conversions, targets, losses, the posterior by Bayes' rule, and what is refused."""

import math

import pytest
import torch

from minidiff import Diffusion, create_model, schedules
from minidiff.diffusion import TIMES, drop_condition
from minidiff.losses import late_times, logit_normal_times, loss_weight
from minidiff.prediction import KINDS, Prediction, clip, target
from minidiff.variational import posterior, prior_term

torch.manual_seed(0)
X0, EPS = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)


def model(prediction="eps", schedule=None, **options):
    network = create_model("ddpm_test", **options)
    return Diffusion(network, schedule or schedules.cosine(), prediction, shape=(3, 8, 8))


class Exact(torch.nn.Module):
    """Returns the training target of a known (x0, eps), whatever it sees."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, time, y=None):
        return self.out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [schedules.linear(), schedules.flow(), schedules.edm()], ids=str)
def test_every_prediction_gives_back_x0_and_eps(kind, schedule):
    for t in (0.02, 0.4, 0.97):
        alpha, sigma = schedule(t)
        x_t = alpha * X0 + sigma * EPS
        seen = Prediction(kind, x_t, target(kind, X0, EPS, alpha, sigma), alpha, sigma)
        torch.testing.assert_close(seen.x0, X0, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(seen.eps, EPS, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(seen.v, alpha * EPS - sigma * X0, rtol=1e-8, atol=1e-7)
        torch.testing.assert_close(seen.flow, EPS - X0, rtol=1e-8, atol=1e-7)
        torch.testing.assert_close(seen.score, -EPS / sigma, rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize("kind", ["v", "flow", "edm"])
def test_v_flow_and_edm_are_finite_where_only_noise_is_left(kind):
    out = target(kind, X0, EPS, 0.0, 1.0) if kind != "edm" else EPS
    seen = Prediction(kind, EPS, out, 0.0, 1.0)
    assert seen.x0.isfinite().all() and seen.eps.isfinite().all()


def test_clip_keeps_x0_in_range_and_x_t_where_it_was():
    alpha, sigma = 0.6, 0.8
    seen = clip(lambda x, t: Prediction("x0", x, 3 * X0, alpha, sigma))(X0, 0.5)
    assert seen.x0.abs().max() <= 1
    torch.testing.assert_close(alpha * seen.x0 + sigma * seen.eps, X0)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_zero_for_the_truth_and_counts_its_error(kind):
    schedule = schedules.linear()
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in schedule(t))
    truth = target(kind, X0, EPS, alpha, sigma)
    for shift, expected in ((0.0, [0.0, 0.0]), (0.5, [0.25, 0.25])):
        shift = shift / sigma if kind == "score" else shift  # the error of a score is counted times sigma
        diffusion = Diffusion(Exact(truth + shift), schedule, kind, shape=(3, 4, 4), value_range=(-9, 9))
        assert diffusion.loss(X0, t=t, eps=EPS).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("weight", ["min_snr", "p2", "edm"])
def test_a_weight_says_the_same_in_every_kind(weight):
    """The weighted loss of one wrong x0 is the same whether the network speaks of eps, x0, v, flow or edm."""
    schedule = schedules.cosine()
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    alpha, sigma = schedule(t)
    wide_alpha, wide_sigma = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    x_t = wide_alpha * X0 + wide_sigma * EPS
    wrong = X0 + 0.1
    wrong_eps = (x_t - wide_alpha * wrong) / wide_sigma
    losses = []
    for kind in ("x0", "eps", "v", "flow", "edm"):
        error = target(kind, wrong, wrong_eps, wide_alpha, wide_sigma) - target(kind, X0, EPS, wide_alpha, wide_sigma)
        losses.append(error.square().flatten(1).mean(1) * loss_weight(weight, kind, alpha, sigma))
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-6, atol=0)


def test_edm_weight_makes_the_loss_of_the_raw_network_even():
    alpha, sigma = schedules.edm()(torch.tensor([0.001, 0.02, 0.5], dtype=torch.float64))
    torch.testing.assert_close(loss_weight("edm", "edm", alpha, sigma), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("schedule", [schedules.linear(), schedules.flow(), schedules.variance_exploding()], ids=str)
def test_posterior_is_bayes_rule(schedule):
    """q(x_s | x_t, x0) on a grid: prior N(a_s x0, s_s^2) times likelihood N(x_t; a_t/a_s x_s, var)."""
    s, t, x0, x_t = 0.3, 0.45, 0.7, -0.4
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    ratio = alpha_t / alpha_s
    x_s = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    noise = sigma_t**2 - ratio**2 * sigma_s**2
    log = -((x_s - alpha_s * x0) ** 2) / (2 * sigma_s**2) - (x_t - ratio * x_s) ** 2 / (2 * noise)
    p = torch.softmax(log, 0)
    mean, variance = posterior(schedule, torch.tensor([x0]).double(), torch.tensor([x_t]).double(), s, t)
    assert mean.item() == pytest.approx((p * x_s).sum().item(), rel=1e-6)
    assert variance == pytest.approx((p * (x_s - mean) ** 2).sum().item(), rel=1e-6)


def test_bits_per_dim_of_a_perfect_eps_is_that_of_the_first_step_and_the_prior():
    """A network that knows eps makes every KL vanish; what is left is computed here from its definition."""
    schedule = schedules.linear(100)
    image = torch.tensor([[[[0.0, 1.0], [-1.0, 1 / 255]]]], dtype=torch.float64)

    class Knows(torch.nn.Module):
        def forward(self, x, time, y=None):
            alpha, sigma = schedule((time.double() + 1) / 100)
            return (x - alpha.view(-1, 1, 1, 1) * image) / sigma.view(-1, 1, 1, 1)

    diffusion = Diffusion(Knows(), schedule, "eps", shape=(1, 2, 2))
    bits = diffusion.bits_per_dim(image)
    alpha_bar = schedule.alphas_cumprod
    std = math.sqrt(schedule.betas[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1]))
    inside = math.tanh(math.sqrt(2 / math.pi) * (1 / 255 / std + 0.044715 * (1 / 255 / std) ** 3))
    edge = (1 + inside) / 2
    expected = -(2 * math.log(inside) + 2 * math.log(edge)) / 4 / math.log(2) + prior_term(schedule, image).item()
    assert bits.item() == pytest.approx(expected, rel=1e-6)


def test_hybrid_loss_trains_the_variance_without_touching_the_mean():
    network = create_model("ddpm_test", out_channels=6)
    diffusion = Diffusion(network, schedules.cosine(), "eps", learned_range=True, shape=(3, 8, 8))
    x0 = torch.rand(4, 3, 8, 8) * 2 - 1
    t, eps = torch.full((4,), 0.5), torch.randn(4, 3, 8, 8)
    plain = diffusion.loss(x0, t=t, eps=eps, variational=0.0).mean()
    plain.backward()
    first = network.conv_out.weight.grad.clone()
    assert first[3:].abs().max() == 0
    network.zero_grad()
    diffusion.loss(x0, t=t, eps=eps, variational=1.0).mean().backward()
    torch.testing.assert_close(network.conv_out.weight.grad[:3], first[:3])
    assert network.conv_out.weight.grad[3:].abs().max() > 0


def test_conditions_are_dropped_with_the_asked_probability():
    diffusion = model(num_classes=5)
    seen = []
    diffusion.network.register_forward_hook(lambda module, args, out: seen.append(args[2]))
    y = torch.randint(5, (400,))
    diffusion.loss(torch.zeros(400, 3, 8, 8), y, p_uncond=0.25, generator=torch.Generator().manual_seed(0))
    dropped = seen[0] == 5
    assert 60 < dropped.sum() < 140 and torch.equal(seen[0][~dropped], y[~dropped])


def test_drop_condition_goes_into_tuples():
    from collections import namedtuple

    Pair = namedtuple("Pair", "tokens pooled")
    y = Pair(torch.ones(2, 3, 4), None)
    out = drop_condition(y, Pair(torch.zeros(2, 3, 4), None), torch.tensor([True, False]))
    assert out.pooled is None and out.tokens[:, 0, 0].tolist() == [0, 1]


def test_the_network_is_fed_the_time_of_its_paper():
    linear = schedules.linear()
    assert [TIMES["index"](i / 1000, linear) for i in (1, 1000)] == pytest.approx([0, 999])
    assert TIMES["999t"](0.5, linear) == 499.5 and TIMES["1-t"](0.25, linear) == 0.75
    assert TIMES["log_sigma/4"](0.5, schedules.edm()) == pytest.approx(math.log(40) / 4)
    seen = []
    diffusion = model("edm", schedules.edm())
    diffusion.network.register_forward_hook(lambda module, args, out: seen.append(args[:2]))
    x = torch.randn(2, 3, 8, 8)
    diffusion.denoise(x, 0.5)
    torch.testing.assert_close(seen[0][0], x / math.sqrt(40**2 + 0.25))
    assert seen[0][1].tolist() == pytest.approx([math.log(40) / 4]) and diffusion.time == "log_sigma/4"


def test_a_time_without_dimension_is_shared_by_the_batch():
    x, diffusion = torch.randn(2, 3, 8, 8), model()
    torch.testing.assert_close(diffusion.denoise(x, torch.tensor(0.5)).x0, diffusion.denoise(x, 0.5).x0)


def test_bad_images_are_refused_again_and_again():
    diffusion = model()
    for _ in range(2):
        with pytest.raises(ValueError, match="from 200 to 200"):
            diffusion.loss(IMAGES + 200)
    diffusion.loss(IMAGES)
    with pytest.raises(ValueError, match="from 200 to 200"):
        diffusion.bits_per_dim(IMAGES + 200)


def test_bits_per_dim_is_measured_in_eval_mode_and_modes_come_back():
    diffusion = model("v", schedules.cosine(3), dropout=0.5)
    torch.nn.init.normal_(diffusion.network.conv_out.weight)  # what dropout does must reach the output
    for name, weight in diffusion.network.named_parameters():
        if name.endswith("conv2.weight"):
            torch.nn.init.normal_(weight)
    diffusion.network.down.eval()
    modes = [module.training for module in diffusion.modules()]
    bits = [diffusion.bits_per_dim(IMAGES, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*bits) and [module.training for module in diffusion.modules()] == modes


@pytest.mark.parametrize("kind, options", [("v", {}), ("eps", {"out_channels": 6})])
def test_the_loss_compiles_into_one_graph(kind, options):
    network = create_model("ddpm_test", **options)
    diffusion = Diffusion(network, schedules.cosine(), kind, learned_range=bool(options), shape=(3, 8, 8))
    t, eps = torch.tensor([0.3, 0.8]), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(diffusion.loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES, t=t, eps=eps), diffusion.loss(IMAGES, t=t, eps=eps))


def test_denoise_is_differentiable():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    model().denoise(x, 0.5).x0.sum().backward()
    assert x.grad.abs().max() > 0


IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    "bad, says",
    [
        (lambda: model("esp"), "'eps'"),
        (lambda: model("eps", schedules.flow()), "alpha = 0"),
        (lambda: model("score", schedules.zero_terminal_snr(schedules.linear())), "alpha = 0"),
        (lambda: Diffusion(create_model("ddpm_test"), schedules.flow(), "v", time="index", shape=(3, 8, 8)), "999t"),
        (lambda: Diffusion(create_model("ddpm_test"), schedules.linear(), time="indx", shape=(3, 8, 8)), "'index'"),
        (lambda: model().loss(torch.zeros(2, 1, 8, 8)), r"\(B, 3, 8, 8\), got \(2, 1, 8, 8\)"),
        (lambda: model().loss(IMAGES[:0]), r"got \(0, 3, 8, 8\)"),
        (lambda: model().loss(IMAGES * math.nan), "from nan"),
        (lambda: model().loss(IMAGES.byte()), "got torch.uint8"),
        (lambda: model(in_channels=1).denoise(IMAGES[:, :1], 0.5), "got 3. Make it with out_channels=1"),
        (lambda: model(out_channels=6).loss(IMAGES), "change learned_range"),
        (lambda: Diffusion(torch.nn.Identity(), schedules.flow(), "v", learned_range=True, shape=(2,)), "discrete"),
        (lambda: model(num_classes=4).loss(IMAGES, [0, 1]), "int64 tensor .* got list"),
        (lambda: model(num_classes=4).loss(IMAGES, torch.tensor([True, False])), "got torch.bool"),
        (lambda: model().loss(IMAGES, weight="minsnr"), "'min_snr'"),
        (lambda: model(num_classes=4).loss(IMAGES), "labels are missing"),
        (lambda: model(num_classes=4).loss(IMAGES, torch.tensor([1, 9])), "from 0 to 3"),
        (lambda: model(num_classes=4).loss(IMAGES, torch.tensor([1])), r"shape \(2,\)"),
        (lambda: model().loss(IMAGES, torch.tensor([1, 2])), "unconditional"),
        (lambda: model().loss(IMAGES, p_uncond=0.1), "unconditional"),
        (lambda: model(schedule=schedules.linear(None)).bits_per_dim(IMAGES), "discrete"),
    ],
)  # fmt: skip
def test_bad_values_are_named(bad, says):
    with pytest.raises(ValueError, match=says):
        bad()


def test_late_times_have_their_distribution():
    t = late_times(20_000, generator=torch.Generator().manual_seed(0))
    assert t.min() > 0 and t.max() <= 1
    for level in (0.2, 0.5, 0.85):  # a share u of them is below 3 u / (1 + 2 u)
        assert (t < level).float().mean() == pytest.approx(level / (3 - 2 * level), abs=0.01)


def test_logit_normal_times_have_their_distribution():
    generator = torch.Generator().manual_seed(0)
    t = logit_normal_times(20_000, 0.5, 0.8, generator)
    logit = torch.log(t / (1 - t))
    assert logit.mean().item() == pytest.approx(0.5, abs=0.03) and logit.std().item() == pytest.approx(0.8, abs=0.03)
    assert 0 < t.min() and t.max() < 1
    diffusion = Diffusion(create_model("mlp_test"), schedules.flow(), "flow", shape=(2,))
    t = diffusion.sample_times(20_000, generator, times="logit_normal")
    assert t.mean().item() == pytest.approx(0.5, abs=0.01) and t.std().item() == pytest.approx(0.2083, abs=0.01)
    with pytest.raises(ValueError, match="unknown distribution of times 'logitnormal'.*'logit_normal'"):
        diffusion.sample_times(3, times="logitnormal")
    with pytest.raises(ValueError, match="std must be above 0, got 0"):
        logit_normal_times(3, std=0)


def test_a_network_that_writes_into_its_time_spoils_no_later_step():
    class Writes(torch.nn.Module):
        def forward(self, x, time, y=None):
            seen.append(time.item())
            time *= 0
            return x

    seen, x = [], torch.zeros(1, 2)
    diffusion = Diffusion(Writes(), schedules.linear(), "eps", shape=(2,))
    with torch.inference_mode():
        diffusion.denoise(x, 0.5)
    diffusion.denoise(x.requires_grad_(), 0.5).x0.sum().backward()
    assert seen == [499.0, 499.0]
