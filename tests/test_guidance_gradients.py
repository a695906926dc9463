"""Guidance by gradients: classifier guidance in both forms, against conditional scores known in closed form."""

import pytest
import torch
from goldens_guidance import classifier_of, labelled
from toy import worst

from minidiff import schedules, seeded_noise
from minidiff.guidance import gradient_of, guided
from minidiff.oracles import Gaussian
from minidiff.prediction import Prediction
from minidiff.samplers import ddpm
from minidiff.spacings import spacing


@pytest.fixture(scope="module")
def toy():
    """Three classes of pictures (1, 2, 2) with their exact denoiser, in float64."""
    means = torch.tensor([[-1.0, 0, 0.5, 0], [1, 1, -1, 0], [0, -1, 0, 1]]).view(3, 1, 2, 2)
    return labelled({"w": torch.tensor([0.2, 0.5, 0.3]), "mu": means, "sd": torch.tensor([0.3, 0.2, 0.4])})


@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "edm"])
def test_the_exact_classifier_at_scale_one_gives_the_conditional_score(toy, name):
    schedule = getattr(schedules, name)()
    x, y = torch.randn(6, 1, 2, 2).double(), torch.tensor([0, 1, 2] * 2)
    classifier = gradient_of(classifier_of(toy, schedule))
    with torch.no_grad():  # as in a sampler
        for t in (0.02, 0.4, 0.9):
            prediction = guided(toy.denoiser(schedule), lambda x, t: classifier(x, t, y))(x, t)
            conditional = toy.denoiser(schedule)(x, t, y)
            torch.testing.assert_close(prediction.eps, conditional.eps, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(prediction.x0, conditional.x0, rtol=1e-7, atol=1e-7)


def test_the_shift_of_eps_is_minus_sigma_gradient():
    x = torch.randn(2, 3, 2, 2).double()
    gradient = torch.randn_like(x)
    for kind in ("eps", "x0", "v", "flow", "score"):
        before = Prediction(kind, x, torch.randn_like(x), 0.8, 0.6, v_range=x)
        after = guided(lambda x, t, before=before: before, lambda x, t: gradient)(x, 0.5)
        torch.testing.assert_close(after.eps, before.eps - 0.6 * gradient)
        torch.testing.assert_close(after.score, before.score + gradient)
        assert after.v_range is x


def test_pure_noise_is_not_guided():
    schedule, x = schedules.cosine(None), torch.ones(2, 1, 2, 2)
    prediction = guided(lambda x, t: Prediction("v", x, x, *schedule(t)), lambda x, t: x)(x, 1.0)
    assert torch.equal(prediction.x0, -x)


def test_gradients_are_those_of_each_picture_and_leave_parameters_alone():
    network = torch.nn.Linear(4, 3)
    y = torch.tensor([0, 2])

    def log_prob(x_t, t, y):
        return (network(x_t.flatten(1)) * t).log_softmax(1)[torch.arange(len(y)), y]

    x = torch.randn(2, 1, 2, 2)
    with torch.no_grad():
        whole = gradient_of(log_prob, 3.0)(x, 0.5, y)
        for i in range(2):
            alone = gradient_of(log_prob)(x[i : i + 1], 0.5, y[i : i + 1])
            torch.testing.assert_close(whole[i : i + 1], 3 * alone)
    assert network.weight.grad is None and not x.requires_grad and not whole.requires_grad
    share = (network(x.flatten(1)) * 0.5).softmax(1)
    expected = 3 * 0.5 * (network.weight[y] - share @ network.weight)  # of the log of a softmax
    torch.testing.assert_close(whole.flatten(1), expected)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ancestral_guidance_shifts_the_mean_by_the_steps_own_variance(variance):
    schedule, x = schedules.linear(), torch.randn(4, 1, 2, 2).double()
    push = torch.randn_like(x)

    def denoise(x, t):
        return Prediction("x0", x, torch.zeros_like(x), *schedule(t), v_range=torch.full_like(x, 0.3))

    def first(noise, gradient=None):
        return next(ddpm(denoise, schedule, x, [0.6, 0.3, 0.0], noise, variance=variance, gradient=gradient)).x

    plain, zero = first(torch.ones_like), first(torch.zeros_like)
    std = plain - zero
    torch.testing.assert_close(first(torch.zeros_like, lambda x, t: push), zero + std.square() * push)
    torch.testing.assert_close(first(torch.ones_like, lambda x, t: push), plain + std.square() * push)


def test_the_step_to_zero_is_not_shifted():
    schedule, x = schedules.linear(), torch.ones(1, 1, 2, 2)

    def denoise(x, t):
        return Prediction("x0", x, torch.zeros_like(x), *schedule(t), v_range=torch.zeros_like(x))

    for variance in ("small", "large", "learned"):
        run = ddpm(denoise, schedule, x, [1.0, 0.0], torch.zeros_like, variance=variance, gradient=lambda x, t: 1 / 0)
        assert torch.equal(next(run).x, torch.zeros_like(x))


def test_both_forms_of_classifier_guidance_agree_in_the_limit_of_many_steps():
    """On a Gaussian with log p(y | x_t) = a x_t, both sample the same distribution; the gap falls like 1 / steps."""
    schedule, gap = schedules.linear(None), {}
    denoise = Gaussian(torch.zeros(1, 1, 1), 0.3).denoiser(schedule)

    def gradient(x, t):
        return torch.full_like(x, 0.8)

    for steps in (200, 800):
        times = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64).tolist()
        x_T = torch.zeros(1, 1, 1, 1).double()  # means follow the noiseless path: all is linear
        mean = [*ddpm(denoise, schedule, x_T, times, torch.zeros_like, gradient=gradient)][-1].x
        score = [*ddpm(guided(denoise, gradient), schedule, x_T, times, torch.zeros_like)][-1].x
        gap[steps] = worst(mean, score) / score.item()
    assert gap[800] < 0.02 and gap[200] / gap[800] == pytest.approx(4, abs=0.5)


def test_guided_ancestral_sampling_reaches_the_class(toy):
    schedule, y = schedules.linear(), torch.full((400,), 1)
    classifier = gradient_of(classifier_of(toy, schedule))
    noise = seeded_noise([(0, i) for i in range(400)])
    x_T, times = noise(torch.empty(400, 1, 2, 2).double()), spacing(schedule, 60)

    def gradient(x_t, t):
        return classifier(x_t, t, y)

    x = [*ddpm(toy.denoiser(schedule), schedule, x_T, times, noise, gradient=gradient)][-1].x
    mean = toy.means[1].view(1, 2, 2)
    assert worst(x.mean(0), mean) < 0.06 and x.std(0).mean() == pytest.approx(0.2, abs=0.05)
