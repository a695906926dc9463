"""The exercises of notebook 00: counting evaluations, one DDIM step, the path between two noises."""

import math

import torch

from minidiff import schedules
from minidiff.backbones import create_model
from minidiff.course.exercises import compare, exercise
from minidiff.diffusion import Diffusion
from minidiff.prediction import Prediction
from minidiff.samplers import ddim, sample


def _counted(num, steps, guidance):
    """How many pictures a tiny network really sees while `sample` runs."""
    network = create_model("ddpm_test", num_classes=2)
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    diffusion = Diffusion(network, schedules.cosine(), "v", shape=(3, 8, 8))
    sample(diffusion, num, y=1, steps=steps, guidance=guidance, progress=False)
    return sum(seen)


@exercise("guidance asks the network twice, with the label and without; at scale 1 the second answer is not needed.")
def check_evaluations(evaluations):
    for num, steps, guidance in ((1, 4, 1.0), (3, 4, 1.0), (3, 5, 2.5), (2, 3, 0.0)):
        mistakes = {
            "the network sees every picture in every step: multiply by num": steps * (1 if guidance == 1.0 else 2),
            "guidance other than 1 needs a second guess, without the label, in every step": num * steps,
            "at guidance=1 the guess without the label drops out and is not computed": 2 * num * steps,
            "there are `steps` moves between steps + 1 times, and each asks once, at its start":
                num * (steps + 1) * (1 if guidance == 1.0 else 2),
            "a factor of guidance is too much: any scale costs the same two guesses": guidance * num * steps,
        }
        name = f"evaluations({num}, {steps}, {guidance:g})"
        compare(evaluations(num, steps, guidance), _counted(num, steps, guidance), mistakes, name=name)


@exercise("find the noise in x, then mix again with less of it. That is all of DDIM.")
def check_ddim_step(ddim_step):
    guess, x = torch.randn(2, 3, 4, 4).clamp(-1, 1), torch.randn(2, 3, 4, 4)
    schedule = schedules.cosine()
    for t, t_next in ((0.6, 0.5), (0.9, 0.2), (0.3, 0.0)):
        (alpha, sigma), (alpha_next, sigma_next) = schedule(t), schedule(t_next)
        noise = (x - alpha * guess) / sigma
        (step,) = ddim(lambda x, t: Prediction("x0", x, guess, *schedule(t)), schedule, x, [t, t_next])
        mistakes = {
            "you mixed with the old alpha and sigma, which gives x back; the new mixture needs alpha_next and "
            "sigma_next": x,
            "the noise is still sigma times too large: divide x - alpha * guess by sigma":
                alpha_next * guess + sigma_next * sigma * noise,
            "you returned the noise in x; now mix it with the guess": noise,
            "you mixed the guess with x itself; take out of x the noise that is in it, (x - alpha * guess) / sigma":
                alpha_next * guess + sigma_next * x,
            "the guess has to be scaled by alpha before you take it out of x":
                alpha_next * guess + sigma_next * (x - guess) / sigma,
            "alpha_next belongs to the guess and sigma_next to the noise, not the other way round":
                sigma_next * guess + alpha_next * noise,
        }
        name = f"the mixture at t = {t_next:g}, coming from t = {t:g},"
        compare(ddim_step(x, guess, alpha, sigma, alpha_next, sigma_next), step.x, mistakes, name=name, atol=1e-5)


@exercise("on the sphere every stop is as strong as noise should be, and the angles between stops are equal.")
def check_between(between):
    length, angle = 5.0, math.radians(70)
    one, two = torch.eye(48)[0].view(3, 4, 4), torch.eye(48)[7].view(3, 4, 4)
    a, b = length * one, length * (math.cos(angle) * one + math.sin(angle) * two)
    for share in (0.0, 0.25, 0.5, 1.0):
        point = math.cos(share * angle) * one + math.sin(share * angle) * two
        straight = (1 - share) * a + share * b
        degrees = math.degrees(angle)
        mistakes = {
            "that is the straight line, which cuts through the sphere; use the sines of the angles": straight,
            "you scaled the straight line to the right length; it stays on the sphere but hurries through the middle":
                length * straight / straight.norm(),
            "you walk from b to a: share 0 must give a": math.sin(share * angle) / math.sin(angle) * a
                + math.sin((1 - share) * angle) / math.sin(angle) * b,
            "you took a right angle between a and b; noises are only nearly at right angles, so compute it":
                math.cos(share * math.pi / 2) * a + math.sin(share * math.pi / 2) * b,
            "the division by sin(theta) is missing": math.sin(angle) * length * point,
            "torch.sin takes radians, and your angle is in degrees":
                (math.sin((1 - share) * degrees) * a + math.sin(share * degrees) * b) / math.sin(degrees),
        }
        compare(between(a, b, share), length * point, mistakes, name=f"the point at share {share:g}", atol=1e-4)
