"""CLIP score: the cosine between a picture and its caption, as a CLIP sees them, times 100 (Hessel et al. 2021).

torchmetrics has it, and the numbers here are tested against it; but it gives no standard error, takes the end mark off
a caption that is too long, and its release 1.9 does not fit transformers 5.
"""

import os

import torch
import torch.nn.functional as F

from minidiff.diffusion import eval_mode
from minidiff.errors import check_whole
from minidiff.images import pixels
from minidiff.metrics.features import check_pictures
from minidiff.metrics.oracle import check_captions

CLIP = "openai/clip-vit-large-patch14"


class ClipScore(float):
    """A mean CLIP score, 0 to 100: a float with `.error`, its standard error, `.count`, the number of pictures, and
    `.model`, the name of the CLIP; scores of different ones do not compare."""

    def __new__(cls, value, error, count, model):
        self = super().__new__(cls, value)
        self.error, self.count, self.model = error, count, model
        return self

    def __reduce__(self):
        return ClipScore, (float(self), self.error, self.count, self.model)

    def __str__(self):
        return f"CLIP score {float(self):.2f} ± {self.error:.2f} ({self.model}; {self.count} pictures)"

    __repr__ = __str__


def clip_score(pictures, captions, model=CLIP, *, download=False, device=None, batch_size=64):
    """The mean of 100 cos(picture, caption) over pictures (B, C, H, W) in [-1, 1], C = 1 or 3, a `ClipScore`.

    captions   a list of B strings; a longer one than the CLIP takes loses its end
    model      the folder of a CLIP with its processor, or its name on the Hugging Face hub, read from the cache of this
               machine; or a pair (CLIPModel, CLIPProcessor)
    download   allow it to be fetched from the hub
    As in torchmetrics a mean below 0 becomes 0. Raises ValueError for pictures and captions that do not fit together,
    ImportError without transformers, FileNotFoundError where there is no such CLIP on this machine.
    """
    check_pictures(pictures)
    check_whole("batch_size", batch_size)
    check_captions(captions, len(pictures))
    name = getattr(model[0].config, "name_or_path", "") if isinstance(model, tuple) else str(model)
    network, processor = model if isinstance(model, tuple) else read_clip(model, download)
    device = torch.device(device) if device is not None else next(network.parameters()).device
    network.to(device)
    with eval_mode(network), torch.no_grad():
        scores = torch.cat([
            _cosines(network, processor, pictures[first:first + batch_size], captions[first:first + batch_size], device)
            for first in range(0, len(pictures), batch_size)
        ])  # fmt: skip
    count = len(scores)
    error = (scores.std() / count**0.5).item() if count > 1 else float("nan")
    return ClipScore(max(scores.mean().item(), 0.0), error, count, name or type(network).__name__)


def _cosines(network, processor, pictures, captions, device):
    """100 times the cosine of each picture (b, C, H, W) and its caption, (b,) float64 on the CPU."""
    images = processor(images=list(torch.from_numpy(pixels(pictures)).permute(0, 3, 1, 2)), return_tensors="pt")
    most = network.config.text_config.max_position_embeddings
    texts = processor(text=list(captions), return_tensors="pt", padding=True, truncation=True, max_length=most)
    texts = {key: texts[key].to(device) for key in ("input_ids", "attention_mask")}
    seen, said = network.get_image_features(images["pixel_values"].to(device)), network.get_text_features(**texts)
    seen, said = (part if isinstance(part, torch.Tensor) else part.pooler_output for part in (seen, said))  # 4, 5
    return 100 * F.cosine_similarity(seen, said).double().cpu()


def read_clip(name, download=False):
    """(CLIPModel, CLIPProcessor) from a folder, else from the hub's cache, else, with `download`, from the hub."""
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise ImportError("the CLIP score needs a CLIP of transformers: pip install transformers") from error
    folder = os.path.isdir(name)
    options = {"local_files_only": folder or not download}
    try:
        return CLIPModel.from_pretrained(name, **options, use_safetensors=True), CLIPProcessor.from_pretrained(
            name, **options)
    except (OSError, ValueError, TypeError) as error:
        way = (
            "The folder must hold config.json, model.safetensors and the files of a CLIPProcessor." if folder else
            f"Name the folder of one with model=..., or fetch it: clip_score(..., model={str(name)!r}, download=True)."
        )
        raise FileNotFoundError(f"no CLIP could be read from {str(name)!r} on this machine ("
                                f"{str(error).splitlines()[0]}). {way}") from error  # fmt: skip
