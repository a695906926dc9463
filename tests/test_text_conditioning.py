"""One suite over the backbones that take text: tokens, mask and pooled vector mean the same to all of them."""

import pytest
import torch
import torch.nn.functional as F

from minidiff import Diffusion, create_model, from_pretrained, record_attention, save_pretrained, schedules, summary
from minidiff.guidance import classifier_free
from minidiff.layers import Text

TEXT = dict(text_dim=6, pooled_dim=5)
CASES = {
    "uvit": ("uvit_test", dict(num_text_tokens=7)),
    "uvit, adaln": ("uvit_test", dict(num_text_tokens=7, time_as="adaln")),
    "iuvit": ("iuvit_test", {}),
    "iuvit, joint": ("iuvit_test", dict(text_attention="joint")),
    "iuvit, tokens": ("iuvit_test", dict(text_attention="tokens")),
    "ascend": ("ascend_test", {}),
    "ascend, joint": ("ascend_test", dict(text_attention="joint", attn_resolutions=(8, 4))),
    "ascend, places": ("ascend_test", dict(coordinates=True, text_mlp=True)),
    "ascend, residual": ("ascend_test", dict(encoder="residual")),
    "ascend, residual, joint": ("ascend_test", dict(encoder="residual", text_attention="joint")),
    "efficient": ("efficient_unet_test", {}),
    "efficient, text alone": ("efficient_unet_test", dict(attention="text")),
    "dit": ("dit_test", {}),
    "dit, adaln": ("dit_test", dict(conditioning="adaln")),
    "sit": ("sit_test", {}),
    "ddpm": ("ddpm_test", {}),
    "adm": ("adm_test", {}),
    "hit": ("hit_test", {}),
}
each_case = pytest.mark.parametrize("case", CASES)
NO_NULL_TOKEN = ("uvit", "uvit, adaln", "adm")  # without a learned token in place of an empty text


def network_of(case, **overrides):
    """The network of a case, without layers of zeros or small numbers, which would hide all before them."""
    name, arguments = CASES[case]
    torch.manual_seed(0)
    network = create_model(name, **TEXT, **arguments, **overrides).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            small = parameter.ndim > 1 and parameter.std() < 0.05
            if parameter.requires_grad and (small or not parameter.any()):
                parameter.normal_(std=0.2)
        if case.startswith("uvit"):
            network.null_text.normal_()
    return network


def inputs(case, batch=3):
    """(x, time, further inputs by name)."""
    torch.manual_seed(1)
    more = {"low_res": torch.randn(batch, 3, 4, 4)} if case.startswith("efficient") else {}
    return torch.randn(batch, 3, 8, 8), torch.linspace(10, 900, batch), more


def text(counts=(3, 5, 1), length=5):
    """Texts of so many tokens each, padded to one length with noise."""
    torch.manual_seed(2)
    mask = torch.arange(length) < torch.tensor(counts)[:, None]
    return Text(torch.randn(len(counts), length, 6), mask, torch.randn(len(counts), 5))


def pad(y, more, value):
    return Text(F.pad(y.tokens, (0, 0, 0, more), value=value), F.pad(y.mask, (0, more)), y.pooled)


def near(out, expected):
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-5)


@each_case
@torch.no_grad()
def test_padding_changes_nothing(case):
    network, (x, time, more), y = network_of(case), inputs(case), text()
    out = network(x, time, y, **more)
    assert out.shape == x.shape and out.isfinite().all()
    other = y._replace(tokens=torch.where(y.mask[..., None], y.tokens, 1e3))
    near(network(x, time, other, **more), out)
    near(network(x, time, pad(y, 2, 7.0), **more), out)
    cut = Text(y.tokens[:, :3], y.mask[:, :3], y.pooled)
    rest = torch.tensor([0, 2])
    near(network(x, time, cut, **more)[rest], out[rest])  # whose texts have three tokens at most
    assert (network(x, time, cut, **more) - out)[1].abs().max() > 1e-5


@each_case
@torch.no_grad()
def test_each_picture_hears_its_own_text_and_all_of_it(case):
    network, (x, time, more), y = network_of(case), inputs(case), text()
    out, order = network(x, time, y, **more), torch.tensor([2, 0, 1])
    swapped = network(x[order], time[order], y[order], **{name: part[order] for name, part in more.items()})
    near(swapped, out[order])
    for i in range(3):
        one = slice(i, i + 1)
        alone = network(x[one], time[one], y[one], **{name: part[one] for name, part in more.items()})
        near(alone, out[one])
    tokens, pooled = y.tokens.clone(), y.pooled.clone()
    tokens[1, 4] += 1  # its last word
    pooled[2] += 1
    moved = (network(x, time, Text(tokens, y.mask, pooled), **more) - out).abs().amax((1, 2, 3))
    assert moved[0] < 1e-5 and moved[1:].min() > 1e-5


@each_case
@torch.no_grad()
def test_no_mask_means_that_all_tokens_count(case):
    network, (x, time, more), y = network_of(case), inputs(case), text((7, 7, 7), 7)
    out = network(x, time, y, **more)
    near(network(x, time, y._replace(mask=None), **more), out)
    near(network(x, time, y.tokens, **more), network(x, time, y._replace(pooled=None), **more))


@each_case
@torch.no_grad()
def test_an_empty_text_is_the_null_condition(case):
    """One empty text in a batch, however far it is padded, is what network.null says; so are all of them."""
    network, (x, time, more), y = network_of(case), inputs(case), text((3, 0, 5))
    y.pooled[1] = 0
    null = network.null(y)
    out, none = network(x, time, y, **more), network(x, time, null, **more)
    assert out.isfinite().all() and none.isfinite().all()
    near(out[1], none[1])
    assert (out - none)[0].abs().max() > 1e-5 and (out - none)[2].abs().max() > 1e-5
    nothing = Text(1 + y.tokens, torch.zeros_like(y.mask), torch.zeros_like(y.pooled))
    near(network(x, time, nothing, **more), none)
    near(network(x, time, pad(nothing, 2, 3.0), **more), none)
    near(network(x, time, network.null(pad(y, 2, 3.0)), **more), none)


@each_case
def test_the_null_condition_has_the_shape_of_the_text(case):
    network, y = network_of(case), text((7, 3, 1), 7)
    for given in (y, y._replace(mask=None), y._replace(pooled=None), Text(y.tokens)):
        null = network.null(given)
        assert isinstance(null, Text)
        for part, own in zip(null, given, strict=True):
            assert (part is None) == (own is None)
            assert part is None or (part.shape == own.shape and part.dtype == own.dtype)
        assert null.pooled is None or not null.pooled.any()
    bare = network.null(y.tokens)
    assert isinstance(bare, torch.Tensor) and not isinstance(bare, Text) and bare.shape == y.tokens.shape
    assert network.null(y._replace(tokens=y.tokens.double())).tokens.dtype == torch.float64


@each_case
@torch.no_grad()
def test_a_missing_pooled_vector(case):
    network, (x, time, more), y = network_of(case), inputs(case), text()
    out = network(x, time, y._replace(pooled=None), **more)
    assert out.isfinite().all() and (out - network(x, time, y, **more)).abs().amax((1, 2, 3)).min() > 1e-5
    if case != "adm":  # whose linear map, that of GLIDE, has a bias
        near(network(x, time, y._replace(pooled=torch.zeros_like(y.pooled)), **more), out)
        for pooled in (torch.zeros(3, 4), torch.zeros(1, 5)):
            with pytest.raises(ValueError, match=r"pooled must be \(3, 5\).* or None"):
                network(x, time, y._replace(pooled=pooled), **more)


@each_case
def test_what_is_no_text_is_refused(case):
    network, (x, time, more), y = network_of(case), inputs(case), text()
    for mask in (y.mask.long(), y.mask.float(), y.mask[:, :4]):
        with pytest.raises(ValueError, match=r"the mask of a text must be bool \(3, 5\)"):
            network(x, time, y._replace(mask=mask), **more)
    for wrong in (None, torch.arange(3), y._replace(tokens=y.tokens[..., :5]), tuple(y)):
        with pytest.raises(ValueError, match=r"pass y=Text\(tokens \(B, L, 6\)"):
            network(x, time, wrong, **more)
    for other in (y[:1], y[:2]):
        with pytest.raises(ValueError, match="there must be 3 texts, one for each image"):
            network(x, time, other, **more)
    name, arguments = CASES[case]
    with pytest.raises(ValueError, match="choose labels"):
        create_model(name, **TEXT, **arguments, num_classes=3)


def idle(network, case, y):
    """The parameters without any gradient, which DistributedDataParallel would wait for."""
    x, time, more = inputs(case)
    network.zero_grad(set_to_none=True)
    network(x, time, y, **more).square().sum().backward()
    return {name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None}


POOLED = {  # what only the pooled vector reaches
    "adm": {"pooled_embed.weight", "pooled_embed.bias"}, "ddpm": {"pooled.weight"},
    "iuvit": set(), "iuvit, joint": set(), "iuvit, tokens": set(),  # there a missing one is zeros
}  # fmt: skip


@each_case
def test_every_parameter_gets_a_gradient(case):
    network, y = network_of(case), text()
    assert idle(network, case, y) == set()
    assert idle(network, case, y._replace(pooled=None)) == POOLED.get(case, {"pooled_embed.weight"})
    # without a mask no text is empty, and nobody asks for the null token
    assert idle(network, case, y._replace(mask=None) if not case.startswith("uvit") else text((7, 7, 7), 7)) == (
        set() if case in NO_NULL_TOKEN else {"null_text"}
    )
    assert idle(network, case, text((3, 0, 5))) == set()
    for name, weight in network.named_parameters():  # with an empty text among them all learn something
        assert not weight.requires_grad or weight.grad.abs().max() > 0, name


@each_case
def test_gradients_reach_the_words_that_count_and_no_others(case):
    network, (x, time, more), y = network_of(case), inputs(case), text()
    y.tokens.requires_grad_()
    y.pooled.requires_grad_()
    network(x, time, y, **more).square().sum().backward()
    heard = y.tokens.grad.abs().amax(2) > 0
    assert torch.equal(heard, y.mask) and y.pooled.grad.abs().amax(1).min() > 0


@each_case
@torch.no_grad()
def test_guidance_with_texts_of_different_lengths(case):
    """A batch is guided as each of its texts alone, cut to its length, is; and away from a negative text."""
    model = Diffusion(network_of(case), schedules.cosine(1000), "v", time="index", shape=(3, 8, 8))
    (x, _, more), y = inputs(case), text()
    out = classifier_free(model.denoise, y, 3.0, **more)(x, 0.5).out
    with_y, without_y = model.denoise(x, 0.5, y, **more).out, model.denoise(x, 0.5, model.network.null(y), **more).out
    near(out, without_y + 3 * (with_y - without_y))
    for i, count in enumerate((3, 5, 1)):
        one = slice(i, i + 1)
        alone = Text(y.tokens[one, :count], y.mask[one, :count], y.pooled[one])
        guided = classifier_free(model.denoise, alone, 3.0, **{name: part[one] for name, part in more.items()})
        near(guided(x[one], 0.5).out, out[one])
    negative = text((1, 4, 2))
    away = classifier_free(model.denoise, y, 3.0, negative=negative, **more)(x, 0.5).out
    other = model.denoise(x, 0.5, negative, **more).out
    near(away, other + 3 * (with_y - other))


@each_case
@torch.no_grad()
def test_dropped_texts_are_null_in_training(case):
    model = Diffusion(network_of(case), schedules.cosine(1000), "v", time="index", shape=(3, 8, 8))
    (x, _, more), y, t = inputs(case), text(), torch.tensor([0.2, 0.5, 0.9])
    given = dict(t=t, eps=torch.randn_like(x), **more)
    x, dropped = x.clamp(-1, 1), torch.tensor([False, True, False])
    losses = model.loss(x, y, p_uncond=0.5, dropped=dropped, **given)
    near(losses, torch.where(dropped, model.loss(x, model.network.null(y), **given), model.loss(x, y, **given)))


@each_case
@torch.no_grad()
def test_summary_and_attention_maps(case):
    network, (x, time, more), y = network_of(case), inputs(case), text()
    counted = summary(network, y=y, batch=3, shape=(3, 8, 8), **more)
    assert counted.flops > 0 and counted.parameters == sum(weight.numel() for weight in network.parameters())
    longer = text((7, 7, 7), 7)
    if not case.startswith("uvit"):  # which has room for seven tokens always
        assert summary(network, y=longer, batch=3, shape=(3, 8, 8), **more).flops > counted.flops
    before = network(x, time, longer, **more)
    with record_attention(network) as maps:
        assert torch.equal(network(x, time, longer, **more), before)
    for weights in sum(maps.values(), []):
        near(weights.sum(-1), torch.ones(weights.shape[:-1]))
    sizes = [weights.shape[-1] for weights in sum(maps.values(), [])]
    with record_attention(network) as maps:
        network(x, time, longer._replace(mask=torch.arange(7).expand(3, 7) < 2), **more)
    heard = 0
    for size, weights in zip(sizes, sum(maps.values(), []), strict=True):
        silent = (weights == 0).all(dim=2).sum(-1)  # (B or B * windows, heads): keys that no place looks at
        assert weights.shape[-1] == size and set(silent.flatten().tolist()) <= {0, 5}
        heard += int((silent == 5).all())
    assert heard  # some attention has the text among its keys, and five of its seven tokens do not count


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("ascend", "adm", "hit", "efficient"))])
def test_activations_computed_twice_change_no_number(case):
    network, (x, time, more), y, gradients = network_of(case), inputs(case), text((3, 0, 5)), []
    for network.checkpoint in (False, True):
        network.zero_grad()
        network(x, time, y, **more).square().mean().backward()
        gradients.append([weight.grad.clone() for weight in network.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


@each_case
@torch.no_grad()
def test_one_graph_and_half_precision(case):
    network, (x, time, more), y = network_of(case), inputs(case), text((3, 0, 5))
    out = network(x, time, y, **more)
    torch._dynamo.reset()
    near(torch.compile(network, backend="eager", fullgraph=True)(x, time, y, **more), out)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x, time, y, **more).float()
    assert (rough - out).std() / out.std() < 0.05
    whole = network.to(torch.bfloat16)
    small = whole(x.bfloat16(), time, y, **{name: part.bfloat16() for name, part in more.items()})  # texts as encoded
    assert small.dtype == torch.bfloat16 and small.isfinite().all()


@each_case
@torch.no_grad()
def test_saved_and_loaded(case, tmp_path):
    network, (x, time, more), y = network_of(case), inputs(case), text((3, 0, 5))
    save_pretrained(Diffusion(network, schedules.cosine(1000), "v", time="index", shape=(3, 8, 8)), tmp_path)
    again = from_pretrained(tmp_path).network
    assert torch.equal(again(x, time, y, **more), network(x, time, y, **more))
