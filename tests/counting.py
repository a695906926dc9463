"""Counting operations, which is the same on every machine."""

from torch.utils._python_dispatch import TorchDispatchMode


class Count(TorchDispatchMode):
    """Operations that are more than a view: counted, since counts are the same on every machine."""

    ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.ops += not func.is_view and "_unsafe_view" not in str(func)
        return out
