"""Checks of notebook 07: the two scales, classifier guidance on eps, and rescaling."""

import torch

from minidiff.course.exercises import compare, exercise
from minidiff.guidance import rescaled


@exercise("s = 1 + w, in every picture of the one paper and of all the others.")
def check_guided_with_w(guided_with_w):
    with_y, without = torch.randn(2, 4, 3, 8, 8)
    for w in (0.75, 3.0, 0.0):
        gap = with_y - without
        mistakes = {
            "you took w for s: with w = 0 the result must be `with_y`, here it is `without`": without + w * gap,
            "the two halves are swapped: lead away from `without`, towards `with_y`": (1 + w) * without - w * with_y,
            "`without` must be subtracted, not added": (1 + w) * with_y + w * without,
            "s is 1 + w, not w - 1": without + (w - 1) * gap,
            "s is 1 + w, not 1 - w": without + (1 - w) * gap,
        }
        if w:  # at 0 this would be `without`
            mistakes["this is the gradient alone; it must be added to `without`"] = (1 + w) * gap
            mistakes["you left the 1 in 1 + w out: the factors must sum to 1"] = w * with_y - w * without
            mistakes["`without` has the factor w, so that the factors sum to 1"] = (1 + w) * with_y - without
        compare(guided_with_w(with_y, without, w), with_y + w * gap, mistakes, name="the guided prediction")


@exercise("score plus gradient is eps minus sigma times the gradient: the sign turns, and sigma comes in.")
def check_classifier_guided_eps(classifier_guided_eps):
    table = torch.randn(5, 12)

    def log_prob(x, y):
        return (x.flatten(1).tanh() @ table.T).log_softmax(1)[torch.arange(len(x)), y]

    eps, x_t, y = torch.randn(6, 3, 2, 2), torch.randn(6, 3, 2, 2), torch.tensor([0, 4, 2, 2, 1, 3])
    for sigma, scale in ((0.3, 2.5), (0.8, 1.0)):
        x = x_t.clone().requires_grad_()
        (g,) = torch.autograd.grad(log_prob(x, y).sum(), x)
        factor, right = scale * sigma, eps - scale * sigma * g
        mistakes = {
            "the sign: eps points away from the data, so the gradient is subtracted": eps + factor * g,
            "you forgot sigma: the score is -eps / sigma": eps - scale * g,
            "sigma must not be squared; sigma^2 / alpha belongs to x0": eps - scale * sigma**2 * g,
            "multiply by sigma, do not divide by it": eps - scale / sigma * g,
            "this is the guided score, not the guided eps": -eps / sigma + scale * g,
            "this is the gradient alone; it must be subtracted from eps": factor * g,
            "take the gradient of the SUM over the batch; with the mean it shrinks as the batch grows":
                eps - factor * g / len(x),
        }
        if scale != 1:
            mistakes["you forgot the scale"] = eps - sigma * g
        found = classifier_guided_eps(eps, x_t.clone(), log_prob, y, sigma, scale)  # a copy: .grad adds up
        compare(found, right, mistakes, name="the guided eps")


@exercise("each picture gets its own contrast back, and nothing of its neighbours'.")
def check_rescale(rescale):
    conditional = torch.randn(4, 3, 6, 6) * torch.tensor([0.5, 1.0, 1.5, 2.0]).view(-1, 1, 1, 1)
    conditional = conditional * torch.tensor([0.7, 1.0, 1.6]).view(-1, 1, 1)
    guided = 1.8 * conditional + torch.randn_like(conditional)

    def ratio(axes):
        options = dict(dim=axes, keepdim=True) if axes else {}
        return conditional.std(**options) / guided.std(**options)

    def mixed(ratio, phi):
        return phi * ratio * guided + (1 - phi) * guided

    for phi in (0.7, 1.0, 0.0):
        right, own = rescaled(guided, conditional, phi), ratio((1, 2, 3))
        mistakes = {} if phi == 0 else {
            "the standard deviation is taken over the whole batch; each picture needs its own": mixed(ratio(None), phi),
            "the standard deviation is taken over the batch alone: dim must be (1, 2, 3)": mixed(ratio((0,)), phi),
            "each channel is rescaled by itself, which changes the colours: dim must be (1, 2, 3)":
                mixed(ratio((2, 3)), phi),
            "the standard deviation is taken over the channels alone: dim must be (1, 2, 3)": mixed(ratio((1,)), phi),
            "that is the ratio of the variances: take its root": mixed(own**2, phi),
            "the ratio is upside down: the guided prediction must get the deviation of the conditional one":
                mixed(1 / own, phi),
            "phi and 1 - phi are swapped": mixed(own, 1 - phi),
            "you left phi out": own * guided if phi != 1 else None,
            "mix with the guided prediction, not with the conditional one":
                phi * own * guided + (1 - phi) * conditional,
        }  # fmt: skip
        mistakes = {name: value for name, value in mistakes.items() if value is not None and not same(value, right)}
        compare(rescale(guided, conditional, phi), right, mistakes, name="the rescaled prediction")


def same(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-6)
