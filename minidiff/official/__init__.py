"""Key maps, one file a family: the official state dict -> ours. The functions that use them are in checkpoints.py."""

from minidiff.checkpoints import from_official, load_official

__all__ = ["from_official", "load_official"]
