"""Guidance: classifier-free, by a weaker model, and thresholds: what it does to known outputs, what is refused."""

import math

import pytest
import torch
from goldens_guidance import classifier_of, labelled
from toy import worst

from minidiff import create_model, schedules
from minidiff.diffusion import Diffusion
from minidiff.guidance import (
    autoguidance,
    classifier_free,
    condition,
    dynamic_threshold,
    gradient_of,
    scale_from_w,
)
from minidiff.prediction import Prediction


class Says(torch.nn.Module):
    """A network whose output for each label is given, (classes + 1, C, H, W); it counts calls and pictures."""

    def __init__(self, outs):
        super().__init__()
        self.outs, self.sizes, self.inputs = outs, [], {}

    def forward(self, x, time, y, **inputs):
        self.sizes.append(len(x))
        self.inputs = inputs
        return self.outs[y]

    def null(self, y):
        return torch.full_like(y, len(self.outs) - 1)


@pytest.fixture
def diffusion():
    outs = torch.randn(4, 8, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Diffusion(Says(outs), schedules.linear(), "eps", learned_range=True, shape=(4, 2, 2))


X, Y = torch.zeros(3, 4, 2, 2).double(), torch.tensor([0, 2, 1])


@pytest.fixture(scope="module")
def toy():
    """Three classes of pictures (1, 2, 2) with their exact denoiser, in float64."""
    means = torch.tensor([[-1.0, 0, 0.5, 0], [1, 1, -1, 0], [0, -1, 0, 1]]).view(3, 1, 2, 2)
    return labelled({"w": torch.tensor([0.2, 0.5, 0.3]), "mu": means, "sd": torch.tensor([0.3, 0.2, 0.4])})


# --- classifier-free ------------------------------------------------------------------------------------------------


def test_scale_one_is_the_conditional_and_zero_the_unconditional_model_to_the_bit(diffusion):
    null = diffusion.network.null(Y)
    for scale, y in ((1.0, Y), (0.0, null)):
        plain = condition(diffusion.denoise, y)(X, 0.5)
        same = classifier_free(diffusion.denoise, Y, scale)(X, 0.5)
        assert torch.equal(same.out, plain.out) and torch.equal(same.v_range, plain.v_range)
        # and when both halves run, as they do with guide_first
        both = classifier_free(diffusion.denoise, Y, scale, guide_first=4)(X, 0.5)
        assert torch.equal(both.out, plain.out)
    assert worst(condition(diffusion.denoise, Y)(X, 0.5).out, condition(diffusion.denoise, null)(X, 0.5).out) > 0.1


def test_formulas_of_both_papers_agree(diffusion):
    outs, w = diffusion.network.outs[:, :4], 1.5
    guided_out = classifier_free(diffusion.denoise, Y, scale_from_w(w))(X, 0.5)
    torch.testing.assert_close(guided_out.out, (1 + w) * outs[Y] - w * outs[[3, 3, 3]])
    assert torch.equal(guided_out.v_range, diffusion.network.outs[Y, 4:])


def test_a_negative_condition_takes_the_place_of_the_null(diffusion):
    outs, negative = diffusion.network.outs[:, :4], torch.tensor([1, 1, 0])
    out = classifier_free(diffusion.denoise, Y, 3.0, negative=negative)(X, 0.5).out
    torch.testing.assert_close(out, outs[negative] + 3 * (outs[Y] - outs[negative]))


def test_outside_the_interval_only_the_conditional_half_runs(diffusion):
    denoise = classifier_free(diffusion.denoise, Y, 3.0, interval=(0.2, 0.7))
    outs = diffusion.network.outs[:, :4]
    for t in (1.0, 0.701, 0.7, 0.5, 0.201, 0.2, 0.1):
        expected = 3 * outs[Y] - 2 * outs[[3, 3, 3]] if 0.2 < t <= 0.7 else outs[Y]
        torch.testing.assert_close(denoise(X, t).out, expected)
    assert diffusion.network.sizes == [3, 3, 6, 6, 6, 3, 3]


def test_an_interval_up_to_one_holds_where_churn_goes_above_it():
    network = Says(torch.randn(3, 1, 2, 2))
    model = Diffusion(network, schedules.edm(), "edm", shape=(1, 2, 2))
    classifier_free(model.denoise, torch.tensor([0]), 2.0, interval=(0.5, 1.0))(torch.zeros(1, 1, 2, 2), 1.3)
    assert network.sizes == [2]


def test_rescaling_gives_back_the_conditional_contrast(diffusion):
    plain = diffusion.network.outs[Y, :4]
    for phi in (1.0, 0.25):
        out = classifier_free(diffusion.denoise, Y, 6.0, rescale=phi)(X, 0.5).out
        unscaled = classifier_free(diffusion.denoise, Y, 6.0)(X, 0.5).out
        wanted = phi * plain.std((1, 2, 3)) + (1 - phi) * unscaled.std((1, 2, 3))
        torch.testing.assert_close(out.std((1, 2, 3)), wanted)
    zero = Diffusion(Says(torch.zeros(3, 4, 2, 2)), schedules.linear(), shape=(4, 2, 2))
    assert (classifier_free(zero.denoise, Y % 2, 2.0, rescale=0.7)(X.float(), 0.5).out == 0).all()  # a fresh network


def test_power_cosine_weight_grows_from_noise_to_data(diffusion):
    outs = diffusion.network.outs[:, :4]

    def weight_at(index, scale=4.4, power=4):
        out = classifier_free(diffusion.denoise, Y, scale, power=power)(X, (index + 1) / 1000).out
        return ((out - outs[[3, 3, 3]]) / (outs[Y] - outs[[3, 3, 3]])).mean().item()

    assert weight_at(0) == pytest.approx(4.4) and weight_at(999) == pytest.approx(1, abs=1e-6)
    for index in (20, 500):  # DiffiT's formula counts indices from 0
        assert weight_at(index) == pytest.approx(1 + 3.4 * (1 - math.cos(math.pi * (1 - index / 1000) ** 4)) / 2)
    assert weight_at(300, power=1) > weight_at(300, power=4)


def test_only_the_first_channels_are_guided_on_request(diffusion):
    plain, full = (classifier_free(diffusion.denoise, Y, scale)(X, 0.5).out for scale in (1.0, 3.0))
    first = classifier_free(diffusion.denoise, Y, 3.0, guide_first=3)(X, 0.5).out
    assert torch.equal(first[:, :3], full[:, :3]) and torch.equal(first[:, 3], plain[:, 3])
    assert worst(full[:, 3], plain[:, 3]) > 0.1


def test_inputs_of_the_batch_are_doubled_and_shared_ones_are_not(diffusion):
    low, shared = torch.randn(3, 1, 2, 2), torch.tensor([0.1])
    classifier_free(diffusion.denoise, Y, 3.0, low_res=low, low_res_time=shared, level=0.5, mask=None)(X, 0.5)
    seen = diffusion.network.inputs
    assert torch.equal(seen["low_res"], torch.cat([low, low])) and seen["low_res_time"] is shared
    assert seen["level"] == 0.5 and seen["mask"] is None


def test_guidance_with_the_exact_score_is_the_score_of_the_sharpened_condition(toy):
    schedule, x, y = schedules.cosine(), torch.randn(6, 1, 2, 2).double(), torch.tensor([0, 1, 2] * 2)
    classifier = gradient_of(classifier_of(toy, schedule))
    for t in (0.1, 0.5, 0.9):
        score = classifier_free(toy.denoiser(schedule), y, 2.5, toy.null(y))(x, t).score
        torch.testing.assert_close(score, toy.score(x, t, schedule) + 2.5 * classifier(x, t, y), rtol=1e-8, atol=1e-8)


# --- a weaker model, thresholds -------------------------------------------------------------------------------------


def test_autoguidance_extrapolates_whatever_both_predict(toy):
    schedule, x, y = schedules.linear(), torch.randn(4, 1, 2, 2).double(), torch.tensor([0, 1, 2, 0])
    strong, weak = condition(toy.denoiser(schedule), y), toy.denoiser(schedule)
    expected = 2.5 * strong(x, 0.5).x0 - 1.5 * weak(x, 0.5).x0

    def spoken(denoise, kind):
        def bound(x_t, t):
            prediction = denoise(x_t, t)
            return prediction.replace(kind, getattr(prediction, kind))

        return bound

    for one in ("eps", "x0", "v"):
        for other in ("eps", "x0", "v", "flow"):
            result = autoguidance(spoken(strong, one), spoken(weak, other), 2.5)(x, 0.5)
            torch.testing.assert_close(result.x0, expected)
    assert torch.equal(autoguidance(strong, weak, 0.0)(x, 0.5).x0, weak(x, 0.5).x0)
    assert autoguidance(strong, weak, 1.0) is strong


def test_dynamic_threshold_keeps_small_values_and_shrinks_large_ones():
    x = torch.stack([torch.linspace(-0.8, 0.8, 101), torch.linspace(-5, 5, 101)]).view(2, 1, 1, 101)
    x0 = dynamic_threshold(lambda x, t: Prediction("x0", x, x, 0.8, 0.6), 0.8)(x, 0.5).x0
    assert torch.equal(x0[0], x[0]) and x0.abs().max() == 1
    torch.testing.assert_close(x0[1, 0, 0, 50:], (torch.linspace(0, 5, 51) / 4).clamp(max=1))
    for low, high in ((0.0, 1.0), (0.0, 255.0), (-9.0, 9.0)):  # the same picture in another range of values
        moved = (low + high) / 2 + (high - low) / 2 * x
        other = dynamic_threshold(lambda x, t: Prediction("x0", x, x, 0.8, 0.6), 0.8, low, high)(moved, 0.5).x0
        torch.testing.assert_close((other - (low + high) / 2) / ((high - low) / 2), x0)
    meta = torch.empty(2, 3, 8, 8, device="meta")  # nothing is read from the device
    assert dynamic_threshold(lambda x, t: Prediction("eps", x, x, 0.8, 0.6))(meta, 0.5).x0.is_meta


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scale, options, says",
    [
        (-0.5, {}, "scale must be at least 0, got -0.5"),
        (math.nan, {}, "scale must be at least 0, got nan"),
        (math.inf, {}, "scale must be at least 0, got inf"),
        ("3", {}, "scale must be at least 0, got '3'"),
        ([1, 2], {}, r"scale must be at least 0, got \[1, 2\]"),
        (2.0, {"interval": 0.5}, r"0 <= lo < hi <= 1, got 0.5"),
        (2.0, {"interval": (0.7, 0.2)}, r"0 <= lo < hi <= 1, got \(0.7, 0.2\)"),
        (2.0, {"interval": (0.28, 2.9)}, r"a sigma becomes a time by schedule.inverse"),
        (2.0, {"rescale": 1.5}, "rescale must be from 0 .* got 1.5"),
        (2.0, {"power": 0}, "power must be above 0, got 0"),
        (2.0, {"guide_first": 0}, "guide_first must be a whole number of at least 1, got 0"),
        (2.0, {"negative": torch.tensor([1])}, r"negative must be .* same shape as y, \(3,\); got \(1,\)"),
        (2.0, {"null": torch.tensor([3, 3])}, r"null must be .* same shape as y, \(3,\); got \(2,\)"),
    ],
)
def test_bad_values_are_named(diffusion, scale, options, says):
    with pytest.raises(ValueError, match=says):
        classifier_free(diffusion.denoise, Y, scale, **options)


def test_more_channels_than_there_are_cannot_be_guided(diffusion):
    with pytest.raises(ValueError, match="guide_first must be at most 4, the number of channels; got 5"):
        classifier_free(diffusion.denoise, Y, 2.0, guide_first=5)(X, 0.5)


def test_guidance_needs_a_null_condition(diffusion):
    plain = Diffusion(create_model("ddpm_test"), schedules.cosine(), "v", shape=(3, 8, 8))
    with pytest.raises(ValueError, match="needs a condition: pass y="):
        classifier_free(plain.denoise, None, 2.0)
    for y in (1, [1, 2, 3]):
        with pytest.raises(ValueError, match=r"a tensor \(B,\) of labels, got"):
            classifier_free(diffusion.denoise, y, 2.0)
    with pytest.raises(ValueError, match="unconditional network has no null"):
        classifier_free(plain.denoise, Y, 2.0)
    with pytest.raises(ValueError, match="pass null=..., of the shape of y"):
        classifier_free(lambda x, t, y: diffusion.denoise(x, t, y), Y, 2.0)
    classifier_free(plain.denoise, None, 1.0)  # nothing is guided


def test_other_scales_and_quantiles_are_checked():
    with pytest.raises(ValueError, match="at least 0, got -1.0; 0 is the plain model, and the negative of log_prob"):
        gradient_of(None, -1.0)
    with pytest.raises(ValueError, match="at least 0, got -1.0; 0 is the weak model"):
        autoguidance(None, None, -1.0)
    for p in (0, 1.5, 99.5):
        with pytest.raises(ValueError, match=f"p must be .* got {p}"):
            dynamic_threshold(None, p)
