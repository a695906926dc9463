"""The exercises of notebook 07: solutions pass, stubs fail, typical wrong answers are named."""


import torch

from minidiff.course.checks import notebook_07 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch}  # by the notebook to its solutions


def stub(*args):
    ...


def test_guided_with_w(solved):
    prove(checks.check_guided_with_w, solved["guided_with_w"], stub, {
        "took w for s": lambda c, u, w: u + w * (c - u),
        "swapped": lambda c, u, w: (1 + w) * u - w * c,
        "not added": lambda c, u, w: (1 + w) * c + w * u,
        "not w - 1": lambda c, u, w: u + (w - 1) * (c - u),
        "left the 1": lambda c, u, w: w * c - w * u,
        "gradient alone": lambda c, u, w: (1 + w) * (c - u),
        "has the factor w": lambda c, u, w: (1 + w) * c - u,
    })  # fmt: skip


def test_classifier_guided_eps(solved):
    def wrong(on_eps=1.0, factor=lambda scale, sigma: -scale * sigma, reduce=torch.sum):
        def classifier_guided_eps(eps, x_t, log_prob, y, sigma, scale):
            x = x_t.clone().requires_grad_()
            (g,) = torch.autograd.grad(reduce(log_prob(x, y)), x)
            return on_eps * eps + factor(scale, sigma) * g
        return classifier_guided_eps

    prove(checks.check_classifier_guided_eps, solved["classifier_guided_eps"], stub, {
        "the sign": wrong(factor=lambda scale, sigma: scale * sigma),
        "forgot sigma": wrong(factor=lambda scale, sigma: -scale),
        "not be squared": wrong(factor=lambda scale, sigma: -scale * sigma**2),
        "do not divide": wrong(factor=lambda scale, sigma: -scale / sigma),
        "the SUM over the batch": wrong(reduce=torch.mean),
        "forgot the scale": wrong(factor=lambda scale, sigma: -sigma),
        "gradient alone": wrong(on_eps=0.0, factor=lambda scale, sigma: scale * sigma),
    })  # fmt: skip


def test_the_gradient_may_be_collected_by_backward():
    def classifier_guided_eps(eps, x_t, log_prob, y, sigma, scale):
        log_prob(x_t.requires_grad_(), y).sum().backward()
        return eps - scale * sigma * x_t.grad

    assert checks.check_classifier_guided_eps(classifier_guided_eps)


def test_rescale(solved):
    def wrong(dims=(1, 2, 3), flip=False, power=1, weights=lambda phi: (phi, 1 - phi)):
        def rescale(guided, conditional, phi):
            a, b = (v.std(dims, keepdim=True) if dims else v.std() for v in (conditional, guided))
            on_new, on_old = weights(phi)
            return on_new * guided * (b / a if flip else a / b) ** power + on_old * guided
        return rescale

    prove(checks.check_rescale, solved["rescale"], stub, {
        "over the whole batch": wrong(dims=None),
        "over the batch alone": wrong(dims=(0,)),
        "changes the colours": wrong(dims=(2, 3)),
        "ratio of the variances": wrong(power=2),
        "upside down": wrong(flip=True),
        "swapped": wrong(weights=lambda phi: (1 - phi, phi)),
        "left phi out": wrong(weights=lambda phi: (1, 0)),
    })  # fmt: skip
