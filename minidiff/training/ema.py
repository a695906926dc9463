"""The exponential moving average of the weights: the model one samples from."""

import contextlib
import copy
import math

import torch

from minidiff.training.world import local


class EMA:
    """A copy of `model` whose weights follow those of the model: w_ema <- d w_ema + (1 - d) w.

    model     any nn.Module; the copy is `ema.model`, in eval mode and without gradients, ready to be sampled from
    decay     d in [0, 1): it averages over about 1 / (1 - d) steps
    warmup    the first steps use d = min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten
    halflife  instead of `decay`, as in EDM: in (halflife, batch_size) images d falls by half, d = 0.5 ** (batch_size /
              halflife); with `warmup` over at most 5 % of the images seen so far (Karras et al. 2022, their code)

    Buffers and weights without gradient are copied, not averaged.
    """

    def __init__(self, model, decay=0.999, warmup=True, halflife=None):
        if halflife is None and not 0 <= decay < 1:
            raise ValueError(f"ema={decay!r}: the decay must be in [0, 1), for example 0.999; None means no average.")
        if halflife is not None and not (halflife[0] > 0 and halflife[1] > 0):
            raise ValueError(f"ema_halflife={halflife[0]!r}: a number of images above 0, for example 500_000.")
        self.decay, self.warmup, self.halflife = decay, warmup, halflife
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.follow(model)

    def follow(self, model):
        """Average this model's weights, from its tensors as they are now: called again after both were sharded."""
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        pairs = [(name, mine, theirs) for (name, mine), theirs in zip(_state(self.model), _values(model), strict=True)]
        self._averaged = _columns(pair[1:] for pair in pairs if pair[0] in trained)
        self._copied = _columns(pair[1:] for pair in pairs if pair[0] not in trained)

    def decay_at(self, step):
        """The decay of the update after `step` (0, 1, ...)."""
        if self.halflife is not None:
            images, batch = self.halflife
            images = min(images, 0.05 * batch * step) if self.warmup else images
            return 0.5 ** (batch / max(images, 1e-8))
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, step):
        """Move the average towards the model, after optimiser step number `step` (0, 1, ...)."""
        mine, theirs = self._averaged
        torch._foreach_lerp_(mine, theirs, 1.0 - self.decay_at(step))  # one call for all weights
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)

    @torch.no_grad()
    def undo(self, steps):
        """Take back the updates after these `steps`, in which the model's weights did not change."""
        left = math.prod(self.decay_at(step) for step in steps)
        if left < 1e-6:  # so early that nothing is left of the average before; it is the weights themselves
            return
        torch._foreach_lerp_(*self._averaged, 1.0 - 1.0 / left)

    @contextlib.contextmanager
    def swapped_in(self, model):
        """Inside `with ema.swapped_in(model):` the model has the averaged weights, afterwards its own again."""
        self._swap(model)
        try:
            yield model
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model):
        for mine, theirs in zip(_values(self.model), _values(model), strict=True):
            if hasattr(theirs, "to_local"):  # FSDP keeps the memory of its parts: they change their values
                mine, theirs = local(mine), local(theirs)
                kept = mine.clone()
                mine.copy_(theirs)
                theirs.copy_(kept)
            else:
                mine.data, theirs.data = theirs.data, mine.data


def _state(model):
    """(name, tensor) of all weights and buffers, each once, in a fixed order."""
    return [*model.named_parameters(), *model.named_buffers()]


def _values(model):
    return [tensor for _, tensor in _state(model)]


def _columns(pairs):
    pairs = list(pairs)
    return [local(mine) for mine, _ in pairs], [local(theirs) for _, theirs in pairs]
