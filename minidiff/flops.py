"""`summary()`: where the parameters and the work of a network are, module by module."""

import inspect
from typing import NamedTuple

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from minidiff.errors import check_whole


class Row(NamedTuple):
    """One module: its name, class and shape of output, its parameters, and the operations of one forward pass."""

    name: str
    kind: str
    shape: tuple | None
    parameters: int
    flops: int


class Summary(NamedTuple):
    """The rows of a network and its sums; printed, a table. `flops` counts a multiplication and an addition as two."""

    rows: list
    parameters: int
    flops: int
    shape: tuple

    def __str__(self):
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'module':{width}}  {'class':16}  {'output':>20}  {'parameters':>13}  {'MFLOPs':>11}"]
        for name, kind, shape, parameters, flops in self.rows:
            shape = "" if shape is None else "x".join(map(str, shape))
            lines.append(f"{name:{width}}  {kind:16.16}  {shape:>20}  {parameters:13,}  {flops / 1e6:11,.1f}")
        shape = "x".join(map(str, self.shape))
        work = f"{self.flops / 1e9:,.3f} GFLOPs, so {self.flops / 2e9:,.3f} GMACs"
        lines.append(f"{self.parameters:,} parameters; {work}, for {shape}")
        return "\n".join(lines)


def summary(model, *, depth=2, y=None, shape=None, batch=1, **inputs):
    """The parameters and operations of a Diffusion or of a network, by module down to `depth`: a `Summary`.

    Nothing is computed: the network runs on tensors without memory, however large it is. y: a condition, by default
    label 0 for each image where the network has classes. shape: (C, H, W) of an image, by default that of the
    Diffusion, or of the network where it has one. inputs: further ones by name, such as low_res. Operations are those
    that torch.utils.flop_counter counts: in convolutions, matrix products and attention (which it overlooks in a real
    run on a CPU, whose kernel it does not know). Raises ValueError if no shape is known.
    """
    check_whole("depth", depth)
    network = getattr(model, "network", model)
    shape = shape or getattr(model, "shape", None) or getattr(network, "shape", None)
    latent = getattr(network, "latent_dim", None)  # a generator takes that and no time
    if latent:
        shape = (latent,)
    if shape is None:
        raise ValueError("the shape of an image is not known: pass shape=(C, H, W), or a Diffusion, not a network")
    asked = "y" in inspect.signature(network.forward).parameters  # a classifier has classes, and takes none
    if y is None and asked and getattr(network, "num_classes", 0):
        y = torch.zeros(batch, dtype=torch.int64)
    dtype = next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), None)
    x, time = torch.empty(batch, *shape, device="meta", dtype=dtype), torch.empty(1, device="meta")
    given = (x,) if latent else (x, time) if y is None else (x, time, y.to("meta"))
    state = {name: tensor.to("meta") for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    shapes, hooks = {}, []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: _shape(out)})))
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            inputs = {name: value.to("meta") for name, value in inputs.items()}
            functional_call(network, state, given, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}

    def flops(name, module):  # a list of modules does not run itself
        own = counts.get(f"{type(network).__name__}.{name}")
        return sum(flops(f"{name}.{key}", child) for key, child in module.named_children()) if own is None else own

    rows = [
        Row(name, type(module).__name__, shapes.get(name), _weights(module), flops(name, module))
        for name, module in network.named_modules() if name and name.count(".") < depth
    ]  # fmt: skip
    return Summary(rows, _weights(network), counter.get_total_flops(), (batch, *shape))


def _weights(module):
    return sum(weight.numel() for weight in module.parameters())


def _shape(out):
    return tuple(out.shape) if isinstance(out, torch.Tensor) else None
