"""How far samples are from the data, and how well they show what was asked for.

Fréchet and kernel distance, precision and recall on the features of any network; the oracle of the shapes; CLIP score.
"""

from minidiff.metrics.clip_score import ClipScore, clip_score
from minidiff.metrics.distances import Distance, frechet, frechet_distance, kernel, kernel_distance
from minidiff.metrics.features import FeatureNetwork, features_of, load_features
from minidiff.metrics.oracle import OracleAccuracy, Share, held_out_groups, oracle_accuracy
from minidiff.metrics.precision_recall import PrecisionRecall, covered, precision_recall

__all__ = [
    "ClipScore", "Distance", "FeatureNetwork", "OracleAccuracy", "PrecisionRecall", "Share", "clip_score", "covered",
    "features_of", "frechet", "frechet_distance", "held_out_groups", "kernel", "kernel_distance", "load_features",
    "oracle_accuracy", "precision_recall",
]  # fmt: skip
