"""Training: the loop for one process or many, the averaged weights, checkpoints that survive a kill, the log."""

from minidiff.training.checkpoint import checkpoints, read_averaged
from minidiff.training.ema import EMA
from minidiff.training.evaluation import distance_to
from minidiff.training.history import History
from minidiff.training.logs import read_log
from minidiff.training.optimisation import learning_rate
from minidiff.training.trainer import Trainer, train

__all__ = ["EMA", "History", "Trainer", "checkpoints", "distance_to", "learning_rate", "read_averaged", "read_log",
           "train"]  # fmt: skip
