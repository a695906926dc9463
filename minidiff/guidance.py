"""Conditions on a denoiser: binding one, and classifier-free guidance."""

import torch

from minidiff.prediction import Prediction


def condition(denoise, y=None, **inputs):
    """The bound denoiser (x_t, t) -> Prediction that samplers take, with the condition y fixed."""

    def bound(x_t, t):
        return denoise(x_t, t, y, **inputs)

    return bound


def classifier_free(denoise, y, scale, null, **inputs):
    """The bound denoiser that exaggerates the condition: out = out(null) + scale (out(y) - out(null)).

    scale 1 is the plain conditional model, larger ones follow the condition more closely (Ho and Salimans 2022, whose
    w is scale - 1). `null` is the condition of the same shape that means 'none', usually network.null(y). Both halves
    go through the network as one batch; all C channels are guided, a variance range is that of the conditional half.
    """
    both = join(y, null)
    doubled = {name: join(value, value) for name, value in inputs.items()}

    def guided(x_t, t):
        n = len(x_t)
        prediction = denoise(torch.cat([x_t, x_t]), t, both, **doubled)
        conditional, unconditional = prediction.out[:n], prediction.out[n:]
        out = torch.lerp(unconditional, conditional, scale)
        v_range = None if prediction.v_range is None else prediction.v_range[:n]
        return Prediction(prediction.kind, x_t, out, prediction.alpha, prediction.sigma, v_range)

    return guided


def join(a, b):
    """Two conditions as one batch: tensors are concatenated, tuples part by part; None stays None."""
    if a is None:
        return None
    if isinstance(a, torch.Tensor):
        return torch.cat([a, b])
    return type(a)(*(join(x, y) for x, y in zip(a, b)))
