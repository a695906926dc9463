"""The checks of notebook 00: solutions pass, stubs fail, typical mistakes are named."""

import torch

from minidiff.course.checks import notebook_00 as checks
from minidiff.course.exercises import prove


def stub(*arguments):
    ...


def double(num, steps, guidance):
    return 1 if guidance == 1 else 2


def test_evaluations():
    prove(
        checks.check_evaluations,
        lambda num, steps, guidance=1.0: num * steps * double(num, steps, guidance),
        stub,
        {
            "needs a second guess": lambda num, steps, guidance: num * steps,
            "other than 1 needs a second": lambda num, steps, guidance: num * steps * (2 if guidance > 1 else 1),
            "multiply by num": lambda num, steps, guidance: steps * double(num, steps, guidance),
            "drops out and is not computed": lambda num, steps, guidance: 2 * num * steps,
            "moves between steps + 1 times": lambda num, steps, guidance: num * (steps + 1) * double(0, 0, guidance),
            "any scale costs the same": lambda num, steps, guidance: num * steps * guidance,
        },
    )


def test_ddim_step():
    def right(x, guess, alpha, sigma, alpha_next, sigma_next):
        noise = (x - alpha * guess) / sigma
        return alpha_next * guess + sigma_next * noise

    prove(
        checks.check_ddim_step,
        right,
        stub,
        {
            "gives x back": lambda x, guess, a, s, a_next, s_next: a * guess + s * ((x - a * guess) / s),
            "divide x - alpha * guess by sigma": lambda x, guess, a, s, a_next, s_next: (
                a_next * guess + s_next * (x - a * guess)),
            "the guess with x itself": lambda x, guess, a, s, a_next, s_next: a_next * guess + s_next * x,
            "scaled by alpha before": lambda x, guess, a, s, a_next, s_next: a_next * guess + s_next * (x - guess) / s,
            "not the other way round": lambda x, guess, a, s, a_next, s_next: (
                s_next * guess + a_next * (x - a * guess) / s),
            "the noise in x is not x - guess": lambda x, guess, a, s, a_next, s_next: (
                a_next * guess + s_next * (x - guess)),
            "yours still holds alpha": lambda x, guess, a, s, a_next, s_next: a * guess + s_next * (x - a * guess) / s,
            "also holds noise": lambda x, guess, a, s, a_next, s_next: a_next * guess,
            "believed the guess": lambda x, guess, a, s, a_next, s_next: guess,
            "you returned the noise": lambda x, guess, a, s, a_next, s_next: (x - a * guess) / s,
        },
    )  # fmt: skip


def cosine(a, b):
    return (a * b).sum() / (a.norm() * b.norm())


def with_angle(a, b, share, angle):
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def arc(a, b, share):
    return with_angle(a, b, share, torch.arccos(cosine(a, b)))


def test_between():
    def line(a, b, share):
        return (1 - share) * a + share * b

    quarter = torch.pi / 2
    prove(
        checks.check_between,
        arc,
        stub,
        {
            "the straight line": line,
            "hurries through the middle": lambda a, b, share: line(a, b, share) * a.norm() / line(a, b, share).norm(),
            "share 0 must give a": lambda a, b, share: arc(b, a, share),
            "a right angle": lambda a, b, share: (
                torch.cos(torch.tensor(share * quarter)) * a + torch.sin(torch.tensor(share * quarter)) * b),
            "in degrees": lambda a, b, share: with_angle(a, b, share, torch.rad2deg(torch.arccos(cosine(a, b)))),
            "length 1": lambda a, b, share: arc(a / a.norm(), b / b.norm(), share),
            "sum of all products": lambda a, b, share: (
                with_angle(a, b, share, torch.arccos(a * b / (a.norm() * b.norm())))),
            "is its cosine": lambda a, b, share: with_angle(a, b, share, cosine(a, b)),
            "divide a . b by both lengths": lambda a, b, share: with_angle(a, b, share, torch.arccos((a * b).sum())),
            "sin(theta) is missing": lambda a, b, share: arc(a, b, share) * torch.sin(torch.tensor(70.0).deg2rad()),
        },
    )  # fmt: skip
