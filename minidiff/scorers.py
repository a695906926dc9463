"""What steers a diffusion model from outside: models that judge its noisy images, by class or by text.

`Classifier` and `TextScorer` tie a network to a schedule and a time map, as `Diffusion` does, so that the gradient of
their `log_prob` with respect to x_t can be added to the score (guidance.py). Both have what `training.train` calls.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.diffusion import TIMES, Diffusion, check_image_shape, check_image_values
from minidiff.errors import unknown_name


class NoiseAware(nn.Module):
    """What both have in common with a Diffusion: a network that is fed x_t and the time, a schedule, and its x_t.

    network: see backbones/classifier.py. schedule: the one of the diffusion model to be guided. time: a name of
    diffusion.TIMES; shape: (C, H, W) of one image; value_range: of the images.
    """

    def __init__(self, network, schedule, *, time="index", shape, value_range=(-1.0, 1.0)):
        super().__init__()
        if time not in TIMES:
            raise unknown_name("time", time, TIMES)
        if time.startswith("index") and not schedule.steps:
            raise ValueError(f'time="{time}" counts discrete steps, and {schedule} has none; use time="999t"')
        self.network, self.schedule, self.time = network, schedule, time
        self.shape, self.value_range = tuple(shape), tuple(value_range)
        self._checked = False  # the first batch that a loss sees is checked in full, the others by shape alone

    device, alpha_sigma = Diffusion.device, Diffusion.alpha_sigma
    forward_process, sample_times = Diffusion.forward_process, Diffusion.sample_times

    def feed(self, t, x_t):
        """What the network is told of t, a float or a tensor (B,): float32 (1,) or (B,)."""
        time = TIMES[self.time](t, self.schedule)
        if not isinstance(time, torch.Tensor):
            time = torch.full((1,), time, device=x_t.device)
        return time.float().view(-1)

    def draw(self, x0, t, generator=None, eps=None):
        """(x_t, t): noisy images, at times drawn from the schedule and with noise drawn where none are given."""
        t = self.sample_times(len(x0), generator, x0.device) if t is None else t
        if eps is None:
            eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        return self.forward_process(x0, t, eps), t

    def check_images(self, x0, values=True):
        """Raise ValueError unless images x0 (B, C, H, W) have the shape and, where asked, the values of this model."""
        check_image_shape(self, x0)
        if values:
            check_image_values(self, x0)


class Classifier(NoiseAware):
    """log p(y | x_t): network(x, time) -> logits (B, classes), a schedule and a time map (see NoiseAware)."""

    kind = "classifier"

    def logits(self, x_t, t):
        """The logits (B, classes) of noisy images x_t (B, C, H, W) at time t, a float or a tensor (B,)."""
        return self.network(x_t, self.feed(t, x_t))

    def log_prob(self, x_t, t, y):
        """log p(y | x_t), (B,), differentiable in x_t; y (B,) int64 are classes, t is a float or a tensor (B,)."""
        self._check_labels(y, len(x_t))
        return self.logits(x_t, t).log_softmax(1).gather(1, y[:, None])[:, 0]

    def loss(self, x0, y, *, t=None, eps=None, generator=None, weight="uniform", p_uncond=0.0):
        """The cross-entropy (B,) of classes y (B,) on noised images x0 (B, C, H, W).

        t (B,) and eps are drawn if not given. `weight` and `p_uncond` are those of Diffusion.loss, which training.train
        hands on: only "uniform" and 0 here.
        """
        _only_plain(weight, p_uncond)
        self.check_batch(x0, y, values=not self._checked)
        x_t, t = self.draw(x0, t, generator, eps)
        return F.cross_entropy(self.logits(x_t, t), y, reduction="none")

    def check_batch(self, x0, y, values=True):
        """Raise ValueError unless images and classes fit this model; `values` are checked where that may wait."""
        self.check_images(x0, values)
        self._check_labels(y, len(x0))
        if values:
            low, high = (value.item() for value in torch.aminmax(y))
            if low < 0 or high >= self.network.num_classes:
                raise ValueError(f"classes must be from 0 to {self.network.num_classes - 1}, got {low} to {high}")
            self._checked = True

    def _check_labels(self, y, batch):
        if not isinstance(y, torch.Tensor) or y.dtype != torch.int64 or y.shape != (batch,):
            got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, torch.Tensor) else repr(y)
            raise ValueError(f"classes must be an int64 tensor ({batch},), one for each image, got {got}")


class TextScorer(NoiseAware):
    """How well texts fit x_t, in the manner of CLIP: the inner product of the network's two unit vectors.

    tokenizer: a WordTokenizer with as many numbers as the network has words; the rest as in NoiseAware. Wherever
    `texts` are taken they are a list of strings, or their tokens (N, L), which `.tokens(texts)` makes once for many
    calls.
    """

    kind = "scorer"

    def __init__(self, network, schedule, tokenizer, **options):
        super().__init__(network, schedule, **options)
        if network.vocab_size != len(tokenizer):
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} numbers and the network {network.vocab_size} words; make it with"
                f" vocab_size={len(tokenizer)}"
            )
        self.tokenizer = tokenizer

    def image(self, x_t, t):
        """f(x_t, t): the unit vectors (B, D) of noisy images x_t (B, C, H, W), t a float or a tensor (B,)."""
        return self.network.image(x_t, self.feed(t, x_t))

    def text(self, texts):
        """g(text): the unit vectors (N, D) of texts."""
        tokens = self.tokens(texts)
        return self.network.text(tokens, self.tokenizer.mask(tokens))

    def similarity(self, x_t, t, texts):
        """f(x_t, t) . g(text) for every image and every text, (B, N), from -1 to 1."""
        return self.image(x_t, t) @ self.text(texts).T

    def log_prob(self, x_t, t, texts):
        """exp(logit_scale) f(x_t, t) . g(text), (B,), differentiable in x_t: image i and text i, or one text for all.

        It is log p(text | x_t) up to the logarithm of a sum over all other texts, which is left out (Nichol et al.
        2022, eq. 9): its gradient guides, its value compares one image under one text with another, no more.
        """
        g = self.text(texts)
        if len(g) not in (1, len(x_t)):
            raise ValueError(f"there must be {len(x_t)} texts, one for each image, or one for all; got {len(g)}")
        return self.network.scale() * (self.image(x_t, t) * g).sum(1)

    def loss(self, x0, y, *, t=None, eps=None, generator=None, weight="uniform", p_uncond=0.0):
        """The contrastive loss (B,) of noised images x0 (B, C, H, W) and their texts y.

        t (B,) and eps are drawn if not given.

        Half the cross-entropy of finding the text among those of the batch, half that of finding the image (Radford
        et al. 2021, figure 3). Equal texts in a batch are no mistakes of each other. `weight` and
        `p_uncond` are those of Diffusion.loss, which training.train hands on: only "uniform" and 0 here.
        """
        _only_plain(weight, p_uncond)
        self.check_batch(x0, y, values=not self._checked)
        x_t, t = self.draw(x0, t, generator, eps)
        tokens, own = self.tokens(y), torch.arange(len(x0), device=x0.device)
        logits = self.network.scale() * self.similarity(x_t, t, tokens)  # (B images, B texts)
        same = (tokens[:, None] == tokens).all(2).fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
        by_image, by_text = (F.cross_entropy(scores, own, reduction="none") for scores in (logits, logits.T))
        return (by_image + by_text) / 2

    def tokens(self, texts):
        """The tokens (N, L) of texts on the network's device."""
        tokens = texts if isinstance(texts, torch.Tensor) else self.tokenizer(texts)[0]
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be an int64 tensor (N, L), got {tokens.dtype} {tuple(tokens.shape)}")
        return tokens.to(self.device)

    def check_batch(self, x0, y, values=True):
        """Raise ValueError unless images and texts fit this model; `values` are checked where that may wait."""
        self.check_images(x0, values)
        tokens = self.tokens(y)
        if len(tokens) != len(x0):
            raise ValueError(f"there must be {len(x0)} texts, one for each image, got {len(tokens)}")
        if values:
            low, high = (value.item() for value in torch.aminmax(tokens))
            if low < 0 or high >= len(self.tokenizer):
                raise ValueError(f"tokens must be from 0 to {len(self.tokenizer) - 1}, got {low} to {high}")
            self._checked = True


def _only_plain(weight, p_uncond):
    """Raise ValueError for the options of Diffusion.loss that mean nothing to a classifier or scorer."""
    if weight != "uniform" or p_uncond:
        raise ValueError(
            f'a classifier or scorer weighs all times alike and drops no condition: leave weight="uniform" and'
            f" p_uncond=0.0, got {weight!r} and {p_uncond!r}"
        )
