"""The exercises of notebook 11: solutions pass, stubs fail, typical wrong answers are named."""


import pytest
import torch
import torch.nn.functional as F

from minidiff.backbones.iuvit import RearrangeHead
from minidiff.backbones.uvit import LinearHead
from minidiff.course.checks import notebook_11 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch, "F": F}  # by the notebook to its solutions


def stub(*args):
    ...


def test_head_cost(solved):
    prove(checks.check_head_cost, solved["head_cost"], stub, {
        "also has its 3 x 3 convolution": lambda d, p: (6 * d * p**2, 54 * d),
        "not once": lambda d, p: (6 * d * p**2 + 162, 54 * d),
        "reads all 3 colours in": lambda d, p: (6 * d * p**2 + 54 * p**2, 54 * d),
        "are two operations": lambda d, p: (3 * d * p**2 + 81 * p**2, 27 * d),
        "features, not d": lambda d, p: (6 * d * p**2 + 162 * p**2, 54 * d * p**2),
        "operations per pixel": lambda d, p: (6 * d + 162, 54 * d / p**2),
        "wrong way round": lambda d, p: (54 * d, 6 * d * p**2 + 162 * p**2),
    })  # fmt: skip


@pytest.mark.parametrize("dim, p", [(96, 2), (96, 4)])
def test_the_expected_costs_are_those_of_the_heads(solved, dim, p):
    from torch.utils.flop_counter import FlopCounterMode

    for cost, head in zip(solved["head_cost"](dim, p), (LinearHead(dim, p, 3, 4, True), RearrangeHead(dim, p, 3, 4))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            head(torch.zeros(1, 16, dim))
        assert counter.get_total_flops() == 16 * cost


def test_dwconv_by_shifts(solved):
    def wrong(**options):
        return lambda x, weight, bias, extras: checks.by_conv(x, weight, bias, extras, **options)

    def everything(x, weight, bias, extras):
        out = checks.by_conv(x, weight, bias, extras)
        return torch.cat([x[:, :extras] * weight[:, 0, 1, 1] + bias, out[:, extras:]], dim=1)

    prove(checks.check_dwconv_by_shifts, solved["dwconv_by_shifts"], stub, {
        "torch.roll": wrong(mode="circular"),
        "repeated outwards": wrong(mode="replicate"),
        "turned round": lambda x, w, b, extras: checks.by_conv(x, w.flip(2, 3), b, extras),
        "rows and columns of the kernel": wrong(transposed=True),
        "once is enough": lambda x, w, b, extras: checks.by_conv(x, w, 9 * b, extras),
        "bias is missing": lambda x, w, b, extras: checks.by_conv(x, w, 0 * b, extras),
        "must pass unchanged": everything,
        "are lost": lambda x, w, b, extras: checks.by_conv(x, w, b, extras)[:, extras:],
    })  # fmt: skip


def test_text_share(solved):
    def share(scale=lambda c: c**-0.5, safe=True, mean=False, image=False, fill=-torch.inf, kept=lambda mask: mask):
        def text_share(q, k_text, k_image, mask):
            text, rest = (q @ k.transpose(2, 3) * scale(q.shape[3]) for k in (k_text, k_image))
            text = text.masked_fill(~kept(mask)[:, None, None], fill)
            if not safe:
                text, rest = (s.exp().sum(3) for s in (text, rest))
                return text / (text + rest)
            text, rest = text.logsumexp(3), rest.logsumexp(3)
            if mean:
                text, rest = text - mask.sum(1)[:, None, None].log(), rest - torch.tensor(k_image.shape[2]).log()
            return torch.sigmoid(rest - text if image else text - rest)
        return text_share

    def by_number(q, k_text, k_image, mask):
        words = mask.sum(1)[:, None, None]
        return (words / (words + k_image.shape[2])).expand(q.shape[:3])

    def ratio(q, k_text, k_image, mask):
        s = solved["text_share"](q, k_text, k_image, mask)
        return s / (1 - s)

    def each_word(q, k_text, k_image, mask):
        text, rest = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5 for k in (k_text, k_image))
        text = text.masked_fill(~mask[:, None, None], -torch.inf)
        return torch.cat([text, rest], 3).softmax(3)[..., : k_text.shape[2]]

    prove(checks.check_text_share, solved["text_share"], stub, {
        "padding is counted": share(kept=torch.ones_like),
        "True is a word": share(kept=torch.logical_not),
        "minus infinity": share(fill=0.0),
        "share of the image": share(image=True),
        "not divided by the square root": share(scale=lambda c: 1.0),
        "are divided by c": share(scale=lambda c: 1 / c),
        "share by number": by_number,
        "means of the exponentials": share(mean=True),
        "divide by both together": ratio,
        "sum them": each_word,
        "subtract the largest": share(safe=False),
    })  # fmt: skip
