"""How far samples are from the data: Fréchet and kernel distance on the features of any network."""

from minidiff.metrics.distances import Distance, frechet, frechet_distance, kernel, kernel_distance
from minidiff.metrics.features import FeatureNetwork, features_of, load_features

__all__ = ["Distance", "FeatureNetwork", "features_of", "frechet", "frechet_distance", "kernel", "kernel_distance",
           "load_features"]  # fmt: skip
