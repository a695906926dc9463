"""NCSN++ and DDPM++: their sizes, the filter, and the parts that DDPM does not have."""

import pytest
import torch
import torch.nn.functional as F
from counting import Count

from minidiff import Diffusion, create_model, from_pretrained, sample, save_pretrained, schedules
from minidiff.attention_maps import record_attention
from minidiff.backbones.ncsnpp import CHOICES, Resample
from minidiff.guidance import classifier_free
from minidiff.official import released

FAMILIES = ("ncsnpp_test", "ddpmpp_test", "edm_test")
# Published, but no model of its own name: parameters
VARIANTS = [
    ("ncsnpp_cifar10", dict(num_res_blocks=8), 107_587_075),
    ("ddpmpp_cifar10", dict(num_res_blocks=8), 106_632_579),
    ("ddpmpp_cifar10", dict(num_res_blocks=2, resblock_type="ddpm", skip_rescale=False), 35_218_947),
    ("edm_ddpmpp_cifar10", dict(num_classes=10), 55_735_299),
    ("edm_ddpmpp_cifar10", dict(image_size=64, ch_mult=(1, 2, 2, 2)), 61_805_571),
    ("edm_ddpmpp_cifar10", dict(ch_mult=(1, 2, 2, 2), augment_dim=0), 61_804_419),
    ("edm_ncsnpp_cifar10", dict(ch_mult=(1, 2, 2, 2), augment_dim=0), 62_758_787),
]


def network_of(name="ncsnpp_test", **overrides):
    """A network whose branches, which start as almost nothing, do something."""
    torch.manual_seed(0)
    network = create_model(name, **overrides).eval()
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if key.endswith(("conv2.weight", "attention.out.weight", "conv_out.weight")):
                weight.normal_(std=weight[0].numel() ** -0.5)
    return network


def inputs(batch=3):
    torch.manual_seed(1)
    return torch.randn(batch, 3, 8, 8), torch.linspace(0.1, 3, batch), torch.arange(batch) % 3


@pytest.mark.parametrize(("name", "overrides", "count"), VARIANTS)
def test_published_variants_have_their_size(name, overrides, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name, **overrides).parameters()) == count


def test_the_frequencies_of_score_sde_are_a_fixed_parameter_those_of_edm_a_buffer():
    fixed = create_model("ncsnpp_test", embedding="fourier", scale_by_sigma=True)
    assert [key for key, p in fixed.named_parameters() if not p.requires_grad] == ["embed.frequencies"]
    assert list(dict(create_model("edm_test").named_buffers())) == ["embed.frequencies"] + [
        f"{way}.{place}.kernel" for way, place in (
            ("down", "0.resample.resample"), ("down", "0.image.0"), ("up", "0.resample.resample"))
    ]  # fmt: skip
    assert not any("kernel" in key for key in fixed.state_dict())  # the filter is in no file


def correlate(x, taps, stride, before, after):
    """One row or column after the other, as the definition says: x (N,) -> sum of taps over zero-padded x."""
    x = F.pad(x, (before, after))
    return torch.stack([(x[i : i + len(taps)] * taps).sum() for i in range(0, len(x) - len(taps) + 1, stride)])


def by_rows_and_columns(x, f):
    for dim in (2, 3):
        x = torch.stack([f(line) for line in x.movedim(dim, -1).reshape(-1, x.shape[dim])]).reshape(
            *x.movedim(dim, -1).shape[:-1], -1
        ).movedim(-1, dim)  # fmt: skip
    return x


def test_the_filter_by_its_definition():
    """Down: [1, 3, 3, 1] / 8 at every other place. Up: zeros between the pixels, then twice that filter."""
    x, taps = torch.randn(2, 3, 8, 6, dtype=torch.float64), torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8
    down = by_rows_and_columns(x, lambda line: correlate(line, taps, 2, 1, 1))
    torch.testing.assert_close(Resample("down", fir=True).double()(x), down)
    blurred = by_rows_and_columns(x, lambda line: correlate(line, taps, 1, 2, 2))
    torch.testing.assert_close(Resample("blur", fir=True).double()(x), blurred)

    def enlarge(line):
        return correlate(torch.stack([line, torch.zeros_like(line)], dim=1).flatten(), 2 * taps, 1, 2, 1)

    torch.testing.assert_close(Resample("up", fir=True).double()(x), by_rows_and_columns(x, enlarge))
    for fir in (False, True):  # what is the same everywhere stays so, but for the border of zeros
        flat = torch.ones(1, 2, 8, 8)
        for direction in ("down", "up"):
            assert Resample(direction, fir)(flat)[..., 1:-1, 1:-1].eq(1).all()
    assert Resample("up", fir=False)(x)[0, 0, :2, :2].eq(x[0, 0, 0, 0]).all()
    torch.testing.assert_close(Resample("down", fir=False)(x)[0, 0, 0, 0], x[0, 0, :2, :2].mean())


def test_the_image_comes_in_at_every_level():
    """The residual input: the filtered image through a convolution of stride 2, averaged with what came down."""
    network, (x, time, _) = network_of(), inputs()
    seen = {}
    first = network.down[0]
    first["resample"].register_forward_hook(lambda _, __, out: seen.update(down=out))
    network.down[1]["blocks"][0].register_forward_pre_hook(lambda _, args: seen.update(enters=args[0]))
    with torch.no_grad():
        network(x, time)
        conv = first["image"][1]
        shrunk = F.conv2d(Resample("blur", True)(x), conv.weight, conv.bias, stride=2)
        assert shrunk.shape == seen["down"].shape
        torch.testing.assert_close(seen["enters"], (shrunk + seen["down"]) * 0.5**0.5)


def test_a_block_by_its_definition():
    network, x, emb = network_of("ddpmpp_test"), torch.randn(2, 8, 8, 8), torch.randn(2, 32)
    block = network.down[0]["resample"]
    h = F.avg_pool2d(F.silu(F.group_norm(x, 2, block.norm1.weight, block.norm1.bias, eps=1e-6)), 2)
    h = block.conv1(h) + block.time(emb)[..., None, None]
    h = block.conv2(F.silu(F.group_norm(h, 2, eps=1e-6)))
    torch.testing.assert_close(block(x, emb), (block.shortcut(F.avg_pool2d(x, 2)) + h) / 2**0.5)


def test_attention_comes_after_every_block_down_and_once_a_level_up():
    network, (x, time, _) = network_of(num_res_blocks=2), inputs()
    with torch.no_grad(), record_attention(network) as maps:
        network(x, time)
    assert set(maps) == {f"{place}.attention" for place in (
        "down.1.blocks.0", "down.1.blocks.1", "middle.0", "up.0.blocks.2")}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_an_untrained_network_says_almost_nothing(name):
    x, time, _ = inputs()
    assert create_model(name)(x, time).abs().max() < 1e-3


def test_skips_are_rescaled_so_that_the_variance_stays():
    """Through sixteen levels of sums of two branches it would grow; a block of the untrained network halves it."""
    x, emb = torch.randn(2, 8, 8, 8), torch.randn(2, 32)
    for rescale, factor in ((True, 0.5), (False, 1.0)):
        block = create_model("ddpmpp_test", skip_rescale=rescale).down[0]["blocks"][0]
        assert (block(x, emb).var() / x.var()).item() == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_or_one_hot_rows(name):
    network, (x, time, y) = network_of(name, num_classes=3), inputs()
    rows = F.one_hot(y, 3).float()
    with torch.no_grad():
        torch.testing.assert_close(network(x, time, rows), network(x, time, y))
        none = network(x, time, network.null(y))
        torch.testing.assert_close(network(x, time, network.null(rows)), none)
        between = network(x, time, (rows + rows.roll(1, 1)) / 2)  # half this, half that
        assert (between - network(x, time, y)).abs().max() > 1e-3 and (none - between).abs().max() > 1e-3
        network.embed.label.weight.zero_()
        torch.testing.assert_close(network(x, time, y), network(x, time, network.null(y)))
    assert network.null(rows).eq(0).all() and network.null(y).eq(3).all()
    with pytest.raises(ValueError, match=r"one-hot rows \(B, 3\)"):
        network(x, time, rows[:, :2])


def test_a_label_weighs_as_in_edm():
    """A row is multiplied by the root of the number of classes, then goes through the linear map."""
    network, (x, time, y) = network_of(num_classes=4), inputs()
    seen = []
    network.embed.label.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(x, time, y)
    assert torch.equal(seen[0], 2 * F.one_hot(y, 4).float())


def test_augmentation_is_an_input():
    network, (x, time, _) = network_of("edm_test", augment_dim=9), inputs()
    labels = torch.randn(3, 9)
    with torch.no_grad():
        plain = network(x, time)
        assert torch.equal(network(x, time, augment_labels=torch.zeros(3, 9)), plain)
        assert (network(x, time, augment_labels=labels) - plain).abs().amax((1, 2, 3)).min() > 1e-3
    model = Diffusion(network, schedules.edm(), "edm", shape=(3, 8, 8))
    model.loss(x.clamp(-1, 1), augment_labels=labels).sum().backward()
    assert network.embed.augment.weight.grad.abs().max() > 0
    for wrong, width in ((network, 8), (network_of("edm_test"), 9)):
        with pytest.raises(ValueError, match="augment_dim"):
            wrong(x, time, augment_labels=torch.zeros(3, width))


def test_augmentation_passes_through_guidance():
    network, (x, _, y) = network_of("edm_test", augment_dim=9, num_classes=3), inputs()
    model, labels = Diffusion(network, schedules.edm(), "edm", shape=(3, 8, 8)), torch.randn(3, 9)
    with torch.no_grad():
        guided = classifier_free(model.denoise, y, 2.0, network.null(y), augment_labels=labels)(x, 0.1)
        with_label, without = (model.denoise(x, 0.1, c, augment_labels=labels) for c in (y, network.null(y)))
    torch.testing.assert_close(guided.x0, 2 * with_label.x0 - without.x0, rtol=1e-4, atol=1e-4)


def test_a_score_network_by_its_definition():
    """scale_by_sigma and centered=False: the same network, told log sigma, of 2 x - 1, and divided by sigma."""
    settings = dict(embedding="fourier")
    plain, score = network_of(**settings), network_of(**settings, scale_by_sigma=True, centered=False)
    score.load_state_dict(plain.state_dict())
    x, _, _ = inputs()
    sigma = torch.tensor([0.01, 1.0, 50.0])
    with torch.no_grad():
        expected = plain(2 * x - 1, sigma.log()) / sigma[:, None, None, None]
        torch.testing.assert_close(score(x, sigma), expected)


def test_the_ve_model_samples_images_from_0_to_1():
    network = network_of(embedding="fourier", scale_by_sigma=True, centered=False)
    trained = released()["ncsnpp_cifar10"][1]
    model = Diffusion(network, schedules.variance_exploding(), trained["prediction"], time=trained["time"],
                      shape=(3, 8, 8), value_range=trained["value_range"])  # fmt: skip
    images = sample(model, 2, sampler="predictor_corrector", steps=4, progress=False)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
    assert model.loss(torch.rand(4, 3, 8, 8)).isfinite().all()


def test_half_precision_files_keep_the_frequencies(tmp_path):
    """An angle is 2 pi frequency time: rounded frequencies of about 16 would turn it by half a circle."""
    model = Diffusion(network_of("edm_test"), schedules.edm(), "edm", shape=(3, 8, 8))
    for dtype in ("bfloat16", "float16"):
        save_pretrained(model, tmp_path / dtype, dtype=dtype)
        again = from_pretrained(tmp_path / dtype).network.embed.frequencies
        torch.testing.assert_close(again, model.network.embed.frequencies, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_activations_give_the_same_gradients(name):
    network, (x, time, _) = network_of(name), inputs()
    gradients = []
    for network.checkpoint in (False, True):
        network.zero_grad()
        network(x, time).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_errors_name_the_way_out():
    with pytest.raises(ValueError, match="Did you mean 'fourier'"):
        create_model("ncsnpp_test", embedding="fourrier")
    for kind in CHOICES:
        with pytest.raises(ValueError, match=f"unknown {kind}"):
            create_model("ncsnpp_test", **{kind: "?"})
    with pytest.raises(ValueError, match="pass fir=True"):
        create_model("ddpmpp_test", progressive_input="residual")
    with pytest.raises(ValueError, match='resblock_type="biggan"'):
        create_model("ddpmpp_test", fir=True, resblock_type="ddpm")
    network = create_model("ncsnpp_test", num_classes=3)
    for time, y in ((torch.ones(3), torch.ones(1)), (torch.ones(1), torch.ones(3))):
        with pytest.raises(ValueError, match=r"must be \(2,\), one for each image.*got \(3,\)"):
            network(torch.zeros(2, 3, 8, 8), time, y.long())
    network = create_model("ncsnpp_test")
    for shape in ((1, 3, 9, 8), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match="3 channels and sides divisible by 2"):
            network(torch.zeros(shape), torch.ones(1))
    assert network(torch.zeros(1, 3, 16, 12), torch.ones(1)).shape == (1, 3, 16, 12)


def test_the_cifar10_network_wastes_no_operation():
    network = create_model("ddpmpp_cifar10").eval()
    with torch.no_grad(), Count() as count:
        network(torch.randn(1, 3, 32, 32), torch.tensor([5.0]))
    assert count.ops <= 557
