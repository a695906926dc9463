"""Let torchvision be imported beside a CPU-only torch.

The torchvision that PyPI serves for Linux is compiled against CUDA. Beside a torch without CUDA its compiled part does
not load, and `import torchvision` ends with "operator torchvision::nms does not exist": the Python part describes an
operator that was never registered. timm, torchmetrics and transformers fail with it. Declaring the two operators it
looks for is enough: transforms, datasets, make_grid and the models are plain Python. What needs the compiled part (nms
itself, deformable convolution, torchvision's own image decoders) still says that it could not be loaded.
"""

import importlib.util
from pathlib import Path

import torch

_declared = None  # the declarations live as long as this object


def declare_missing_ops():
    """Declare the operators that a CUDA torchvision would register, if and only if it cannot do so itself.

    Does nothing where torch has CUDA, where torchvision is absent or a CPU build, or where the operators are known
    already; it may be called twice, and after a failed `import torchvision`. It does not import torchvision.
    """
    global _declared
    if torch.version.cuda is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    version = Path(found.origin).with_name("version.py")
    if not version.is_file() or "+cu" not in version.read_text(encoding="utf-8"):
        return
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
