"""The backbones, one file each; importing this package registers all their published sizes."""

from minidiff.backbones import classifier, dit, genvit, iuvit, mlp, unet, uvit  # noqa: F401  (each registers its models)
from minidiff.backbones.registry import create_model, list_models, register_model

__all__ = ["create_model", "list_models", "register_model"]
