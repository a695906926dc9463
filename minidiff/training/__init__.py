"""Training: the loop, the averaged weights, checkpoints that survive a kill."""

from minidiff.training.checkpoint import load_checkpoint, read_averaged, save_checkpoint
from minidiff.training.ema import EMA
from minidiff.training.history import History
from minidiff.training.loop import learning_rate, train

__all__ = ["EMA", "History", "learning_rate", "load_checkpoint", "read_averaged", "save_checkpoint", "train"]
