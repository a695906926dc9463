"""The averaged weights that a run left, and whether two runs left the same."""

import torch

from minidiff.training import read_averaged


def weights(folder):
    return read_averaged(folder)[0]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
