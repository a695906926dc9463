"""The exercises of notebook 00: counting evaluations, one DDIM step, the path between two noises."""

import math

import torch

from minidiff import schedules
from minidiff.backbones import create_model
from minidiff.course.exercises import Wrong, compare, exercise
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
    # No scale 0 here: it needs one guess only, the one without the label, while `sample` asks for both all the same.
    for num, steps, guidance in ((1, 4, 1.0), (3, 4, 1.0), (3, 5, 2.5), (5, 3, 0.5)):
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
            "the noise in x is not x - guess: solve x = alpha * guess + sigma * noise for it":
                alpha_next * guess + sigma_next * (x - guess),
            "the new mixture holds alpha_next of the guess, and yours still holds alpha":
                alpha * guess + sigma_next * noise,
            "the new mixture also holds noise, sigma_next of it": alpha_next * guess,
            "you believed the guess at once; lean towards it: mix it with the noise in x again": guess,
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
        degrees, cosine = math.degrees(angle), math.cos(angle)
        mistakes = {
            "that is the straight line, which cuts through the sphere; use the sines of the angles": straight,
            "you scaled the straight line to the right length; it stays on the sphere but hurries through the middle":
                length * straight / straight.norm(),
            "you walk from b to a: share 0 must give a": math.sin(share * angle) / math.sin(angle) * a
                + math.sin((1 - share) * angle) / math.sin(angle) * b,
            "you took a right angle between a and b; noises are only nearly at right angles, so compute it":
                math.cos(share * math.pi / 2) * a + math.sin(share * math.pi / 2) * b,
            "the division by sin(theta) is missing": math.sin(angle) * length * point,
            "you return a vector of length 1; put a and b themselves into the formula, not divided by their lengths":
                point,
            "a . b is one number, the sum of all products; your angle is a tensor":
                torch.where(a * b != 0, length * point, (math.sin((1 - share) * math.pi / 2) * a
                                                         + math.sin(share * math.pi / 2) * b)),
            "what you took for theta is its cosine; torch.arccos gives the angle":
                (math.sin((1 - share) * cosine) * a + math.sin(share * cosine) * b) / math.sin(cosine),
            "torch.sin takes radians, and your angle is in degrees":
                (math.sin((1 - share) * degrees) * a + math.sin(share * degrees) * b) / math.sin(degrees),
        }
        yours = between(a, b, share)
        if torch.is_tensor(yours) and yours.isnan().all():
            raise Wrong("Not quite: your result is NaN. A cosine lies between -1 and 1, so "
                        "divide a . b by both lengths.")
        compare(yours, length * point, mistakes, name=f"the point at share {share:g}", atol=1e-4)
