"""Official weights: key maps, one file a family, and the functions that use them."""

from minidiff.official.loading import from_official, load_official, released

__all__ = ["from_official", "load_official", "released"]
