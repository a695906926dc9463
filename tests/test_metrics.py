"""Distances of pictures: equal to closed forms and to torchmetrics, growing with damage; what they say and refuse."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

from minidiff import load_dataset
from minidiff.metrics import (
    FeatureNetwork,
    features_of,
    frechet,
    frechet_distance,
    kernel,
    kernel_distance,
    load_features,
)

NETWORKS = ["digits", "emoji"]


def flat(x):
    """Features that are the pictures themselves."""
    return x.flatten(1)


def pictures(n, seed=0, shift=0.0):
    return (torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed)) - 0.5) + shift


@pytest.fixture(scope="module", params=NETWORKS)
def halves(request):
    """(name, one half of the data set, the other, its labels): both have all classes."""
    options = {"style": "google"} if request.param == "emoji" else {}
    data = load_dataset(request.param, size=16, split="all", **options)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    images, labels = data.images()[order], data.labels[order]
    return request.param, images[::2], images[1::2], labels[1::2]


# --- the distances ----------------------------------------------------------------------------------------------------


def test_frechet_is_the_closed_form_of_two_gaussians():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    a, b = ((x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T)).T) for x in (a, b))  # white
    scale_a, scale_b, mean = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 0.5], [1.0, -1.0, 0.0]], dtype=torch.float64)
    expected = mean.square().sum() + (scale_a - scale_b).square().sum()  # covariances that commute
    assert frechet(a * scale_a, b * scale_b + mean) == pytest.approx(expected.item(), rel=1e-10)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    assert frechet(a * scale_a @ turn, (b * scale_b + mean) @ turn) == pytest.approx(expected.item(), rel=1e-10)


def test_frechet_of_covariances_that_do_not_commute():
    a = torch.randn(200, 2, generator=torch.Generator().manual_seed(1)).double()
    b = a @ torch.tensor([[1.0, 0.7], [0.0, 0.4]]).double()
    product = torch.cov(a.T) @ torch.cov(b.T)
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))  # trace of the root of a 2 x 2 matrix
    gap = (a.mean(0) - b.mean(0)).square().sum()
    assert frechet(a, b) == pytest.approx((gap + a.T.cov().trace() + b.T.cov().trace() - 2 * root).item(), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric .Kernel")  # that it keeps all features in memory
@pytest.mark.parametrize("n", [20, 500])  # fewer than there are features, and more
def test_both_are_those_of_torchmetrics(n):
    fid, kid = pytest.importorskip("torchmetrics.image.fid"), pytest.importorskip("torchmetrics.image.kid")
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, 32, generator=generator, dtype=torch.float64)
    b = 1.2 * torch.randn(n, 32, generator=generator, dtype=torch.float64) + 0.1
    given = torch.nn.Identity()
    given.num_features = 32
    theirs = fid.FrechetInceptionDistance(feature=given)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert frechet(a, b) == pytest.approx(theirs.compute().item(), rel=1e-6)
    theirs = kid.KernelInceptionDistance(feature=given, subsets=1, subset_size=n)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert kernel(a, b) == pytest.approx(theirs.compute()[0].item(), rel=1e-9)


def test_torchmetrics_takes_our_networks():
    fid = pytest.importorskip("torchmetrics.image.fid")
    real = load_dataset("digits", size=16, split="test").images()
    theirs = fid.FrechetInceptionDistance(feature=load_features("digits").eval())
    with torch.no_grad():
        theirs.update(real, real=True)
        theirs.update(-real, real=False)
    assert float(frechet_distance(real, -real, "digits")) == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_a_set_is_at_no_frechet_distance_from_itself():
    a = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))  # a singular covariance
    assert frechet(a, a) == pytest.approx(0, abs=1e-5)


def test_kernel_distance_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([kernel(*torch.randn(2, 10, 4, generator=generator)) for _ in range(2000)])
    assert abs(values.mean()) < 3 * values.std() / 2000**0.5 < 0.1 * values.std()
    assert (values < 0).any()


def test_kernel_distance_is_the_mean_over_pairs():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    # k(0, 1) = 1 and k(2, 3) = 343; across, k(0, 2) = k(0, 3) = 1, k(1, 2) = 27, k(1, 3) = 64
    assert kernel(a, b) == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)


def test_subsets_are_drawn_from_the_seed_alone():
    real, fake = pictures(40), pictures(40, seed=1, shift=0.1)
    before = torch.random.get_rng_state()
    first, again, other = (kernel_distance(real, fake, flat, subsets=3, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)
    whole = kernel_distance(real, fake, flat, subsets=2, subset_size=40)
    assert whole == pytest.approx(kernel(flat(real), flat(fake))) and whole.spread == pytest.approx(0, abs=1e-12)


# --- on the feature networks ------------------------------------------------------------------------------------------


def test_distances_grow_with_damage(halves):
    name, real, other, labels = halves
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    blurred = [F.interpolate(F.avg_pool2d(other, k), size=16, mode="bilinear") for k in (2, 4, 8)]
    damaged = {
        "noise": [(other + std * noise).clamp(-1, 1) for std in (0.2, 0.4, 0.8)],
        "blur": blurred,
        "classes dropped": [other[labels < most] for most in (8, 5, 2)],
    }
    real, other = features_of(real, name), features_of(other, name)
    damaged = {kind: [features_of(step, name) for step in steps] for kind, steps in damaged.items()}
    for distance in (frechet, kernel):
        least = distance(real, other)
        for kind, steps in damaged.items():
            values = [least, *(distance(real, step) for step in steps)]
            assert values == sorted(values) and values[-1] > 10 * abs(least), f"{distance.__name__}, {kind}: {values}"


@pytest.mark.parametrize("name, least", [("digits", 0.97), ("emoji", 0.6)])
def test_the_networks_classify_held_out_pictures(name, least):
    network, data = load_features(name), load_dataset(name, size=16, split="test")
    assert sum(weight.numel() for weight in network.parameters()) <= 150_000
    with torch.no_grad():
        logits = network.classify(data.images())
    assert logits.shape == (len(data), len(data.classes)) and not network.training
    assert (logits.argmax(1) == data.labels).float().mean() > least


@pytest.mark.parametrize("size", [8, 16, 32])
def test_digits_of_every_size(size):
    network, data = load_features("digits"), load_dataset("digits", size=size, split="test")
    with torch.no_grad():
        assert (network.classify(data.images()).argmax(1) == data.labels).float().mean() > 0.95


def test_features_do_not_depend_on_the_batch_and_leave_the_network_as_it_was():
    network, x = load_features("emoji").train(), load_dataset("emoji", size=16, split="test").images()[:30]
    whole, parts = features_of(x, network), features_of(x, "emoji", batch_size=7)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)
    assert whole.shape == (30, network.num_features) and whole.dtype == torch.float64
    assert network.training and not whole.requires_grad


# --- what they say ----------------------------------------------------------------------------------------------------


def test_a_distance_prints_what_it_was_measured_with():
    x = load_dataset("emoji", size=16, split="test").images()
    text = str(frechet_distance(x, x[:100], "emoji"))
    assert text.startswith("Fréchet distance ") and "FID" not in text
    assert f"(emoji features, 64 numbers; {len(x)} against 100 pictures; biased" in text and "640" in text
    text = repr(frechet_distance(x[:50], x, "emoji"))
    assert "singular with 50 pictures: take 640" in text
    text = f"{kernel_distance(pictures(9), pictures(12), flat, subsets=5)}"
    assert text.startswith("Kernel distance ") and " ± " in text
    assert text.endswith("(flat features, 4 numbers; 9 against 12 pictures)")
    assert str(frechet_distance(pictures(40), pictures(40, 1), flat)).endswith("40 against 40 pictures)")


def test_a_distance_is_a_number():
    near, far = (frechet_distance(pictures(50), pictures(50, 1, shift), flat) for shift in (0.1, 0.4))
    assert near < far and isinstance(far / near, float) and float(far) == far.value == far
    assert f"{far:.3f}" == f"{far.value:.3f}" and max([near, far]) is far
    for other in (copy.deepcopy(near), pickle.loads(pickle.dumps(near))):
        assert str(other) == str(near) and other == near


@pytest.mark.parametrize(
    "real, fake, features, message",
    [
        (pictures(4), pictures(4), "emojis", "unknown features 'emojis'. Did you mean 'emoji'"),
        (pictures(4), pictures(1), flat, "fake has 1 picture"),
        (pictures(0), pictures(4), flat, "real hold no picture"),
        (pictures(4) * 300, pictures(4), flat, r"real must have values in \[-1, 1\]"),
        (pictures(4), pictures(4) + math.nan, flat, r"fake must have values in \[-1, 1\]"),
        (pictures(4), (pictures(4) * 9).byte(), flat, "uint8.*x / 127.5 - 1"),
        (pictures(4)[0], pictures(4), flat, r"real must be .*\(1, 2, 2\)"),
        ([pictures(4)], pictures(4), flat, "real must be a tensor"),
        (pictures(4), pictures(4)[..., :1], flat, r"same shape, got \(1, 2, 2\) and \(1, 2, 1\)"),
        (pictures(4), pictures(4), "digits", r"digits features .* 8 or 16 or 32, got \(4, 1, 2, 2\)"),
        (pictures(4), pictures(4), torch.nn.Identity(), r"must return \(B, D\), here \(4, D\), got \(4, 1, 2, 2\)"),
    ],
)
def test_what_is_refused(real, fake, features, message):
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match=message):
            distance(real, fake, features)


@pytest.mark.parametrize("option", [{"subsets": 0}, {"subset_size": 1}, {"seed": -1}, {"subset_size": 5}])
def test_subsets_that_cannot_be_drawn(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        kernel_distance(pictures(4), pictures(9), flat, **option)


def test_colour_pictures_are_refused_by_the_digits():
    with pytest.raises(ValueError, match=r"\(B, 1, H, H\)"):
        FeatureNetwork("digits", 1, 10)(torch.zeros(2, 3, 16, 16))
