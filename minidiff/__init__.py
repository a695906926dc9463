"""minidiff: diffusion models from the first principle to the newest backbone.

The public names, nothing else. Each is imported from its file when it is first asked for, so that `import minidiff`
costs little more than `import torch`.
"""

import os
from importlib import import_module

# Before torch is loaded. Waiting threads of OpenMP otherwise spin, and where another program needs a core, small
# networks become many times slower (2 cores, both busy: 20 steps of sampling 1.5 to 8.6 s, asleep 0.8 to 1.0 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from minidiff._torchvision import declare_missing_ops  # noqa: E402

__version__ = "0.1.0"

declare_missing_ops()  # before anyone imports torchvision or timm

_FROM = {
    "minidiff.schedules": ["Schedule", "make_schedule"],
    "minidiff.spacings": ["spacing"],
    "minidiff.diffusion": ["Diffusion"],
    "minidiff.prediction": ["Prediction"],
    "minidiff.layers": ["Text"],
    "minidiff.attention_maps": ["record_attention"],
    "minidiff.guidance": ["autoguidance", "classifier_free", "condition", "gradient_of", "guided"],
    "minidiff.samplers": ["sample", "seeded_noise"],
    "minidiff.likelihood": ["log_likelihood"],
    "minidiff.reflow": ["reflow_pairs"],
    "minidiff.backbones": ["create_model", "list_models", "register_model"],
    "minidiff.flops": ["summary"],
    "minidiff.datasets": ["Record", "list_datasets", "load_dataset"],
    "minidiff.text": ["text_encoder"],
    "minidiff.pipeline": ["ClassToImage", "TextToImage"],
    "minidiff.checkpoints": ["from_pretrained", "load", "save_pretrained"],
    "minidiff.official": ["load_official"],
    "minidiff.files": ["cache_folder", "data_folder"],
}
_HOME = {name: module for module, names in _FROM.items() for name in names}
_FILES = ("attention_maps", "backbones", "checkpoints", "course", "datasets", "diffusion", "editing", "guidance",
          "images", "layers", "likelihood", "losses", "metrics", "model_card", "official", "oracles", "pipeline",
          "prediction", "recipes", "reflow", "samplers", "schedules", "scorers", "sharing", "spacings", "text",
          "text_cache", "text_encoders", "training", "variational")

__all__ = ["__version__", *_HOME, *_FILES]


def __getattr__(name):
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _FILES:
        value = import_module(f"minidiff.{name}")
    else:
        raise AttributeError(f"module 'minidiff' has no attribute {name!r}; it has {', '.join(sorted(__all__))}.")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
