"""The backbones, one file each; importing this package registers all their published sizes."""

from minidiff.backbones import (  # noqa: F401  (each registers its models)
    adm,
    adm_classifier,
    ascend,
    classifier,
    diffit,
    dit,
    efficient_unet,
    genvit,
    hit,
    hit_denoiser,
    iuvit,
    mlp,
    ncsnpp,
    unet,
    uvit,
)
from minidiff.backbones.registry import create_model, list_models, register_model

__all__ = ["create_model", "list_models", "register_model"]
