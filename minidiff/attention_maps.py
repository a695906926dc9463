"""Looking at attention: the maps of any backbone, while it runs as always."""

import contextlib

import torch

from minidiff import layers


def attention_weights(q, k, mask=None):
    """softmax(q k^T / sqrt(d)) of q (B, heads, N, d) and k (B, heads, M, d), in float32: (B, heads, N, M)."""
    with torch.autocast(q.device.type, enabled=False):  # it would multiply in half precision again
        logits = (q.float() @ k.float().transpose(-2, -1)) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1)


@contextlib.contextmanager
def record_attention(model):
    """Inside, every attention of `model` leaves its map; the outputs stay the same to the bit.

    `with record_attention(model) as maps:` gives a dict {module name: [map (B, heads, N, M) of each call]}, detached,
    on the device of the model, filled as it runs. One row of a map says where one query looks, and sums to one.
    Whole batches of maps are large: record few pictures. Raises RuntimeError if a recording is under way already.
    """
    if layers.observe is not None:
        raise RuntimeError("attention is being recorded already: end the other `with record_attention(...)` first")
    maps, running = {}, []  # running: the names of the modules that are being called, the innermost last

    def keep(q, k, mask):
        if running:  # else another model is called
            with torch.no_grad():
                maps.setdefault(running[-1], []).append(attention_weights(q, k, mask))

    def leave(module, args, out):
        running.pop()

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda module, args, name=name: running.append(name)))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    layers.observe = keep
    try:
        yield maps
    finally:
        layers.observe = None
        for hook in hooks:
            hook.remove()
