"""Train networks that listen to words on equal terms, and record how each obeys: `python tools/text_runs.py words`.

Experiment `words` compares ways to hand the words to one transformer (notebook 17), `backbones` compares networks
(notebook 18). All learn captioned shapes without some pairs of words, and are asked in mid-run and at the end: pictures
for captions that they have not seen, read back by the oracle of the shapes. The captions name the left or upper of two
things first: with free relations no network learns within minutes whose colour is whose. Since the oracle reads no
rough picture, it is also measured how a network misses a word: by how much its loss grows when one of the caption is
changed, or two exchange their places, or all are taken away. A run is one file
data/results/EXPERIMENT/TIER/RUN.json with a strip of its last pictures, as tools/ablation.py writes them, and read by
minidiff.course.recorded. Runs that are recorded are skipped, interrupted ones go on.
"""

import torch
from ablation import SHOWN, TIMES, curve, record_runs

from minidiff import Diffusion, Text, create_model, load_dataset, sample, schedules, summary
from minidiff.course.obedience import changed
from minidiff.datasets.shapes import RELATIONS, describe, parse
from minidiff.files import cache_folder
from minidiff.metrics import oracle_accuracy
from minidiff.text import text_encoder
from minidiff.training import read_log, train

TIERS = {
    "cpu": dict(size=16, steps=2500, batch_size=64, prompts=400, evaluate_every=500),
    "gpu": dict(size=32, steps=20_000, batch_size=256, prompts=2000, evaluate_every=2000),
}
TRAINING = dict(lr=1e-3, warmup=100, final_lr=1e-5, ema=0.998, p_uncond=0.1, times="late")
SAMPLING = dict(sampler="dpmpp_2m", steps=20, guidance=3.0, seed=1)
TEXT, POOLED = dict(text_dim=128), dict(text_dim=128, pooled_dim=384)

# experiment -> run -> (model, overrides, what it is told). The tiny sizes; the gpu tier gives them 32 pixels.
EXPERIMENTS = {
    "words": {  # IU-ViT each time; where cross-attention has a layer more, a wider MLP has as many weights
        "cross": ("iuvit_tiny", TEXT | {"text_attention": "cross"}, "all"),
        "joint": ("iuvit_tiny", TEXT | {"text_attention": "joint", "mlp_ratio": 5}, "all"),
        "tokens": ("iuvit_tiny", TEXT | {"text_attention": "tokens", "mlp_ratio": 6}, "all"),
        "pooled": ("iuvit_tiny", POOLED | {"text_attention": "cross"}, "pooled"),
        "both": ("iuvit_tiny", POOLED | {"text_attention": "cross"}, "all"),
    },
    "backbones": {
        "ascend": ("ascend_tiny", TEXT | {"coordinates": True}, "all"),
        "iuvit": ("iuvit_tiny", TEXT | {"text_attention": "cross"}, "all"),
        "unet": ("ddpm_tiny", TEXT | {"ch": 32}, "all"),
    },
}  # fmt: skip


def main():
    """Make all runs of an experiment, or those that are named."""
    record_runs(__doc__, EXPERIMENTS, TIERS, run, lambda record: (
        f"right in all {record['accuracy']['seen']['all']:.3f}, "
        f"with held-out pairs {record['accuracy']['held_out']['all']:.3f}"))


def run(experiment, name, model, overrides, told, arguments):
    """Train, question and describe one run: a dict of plain values, and its pictures."""
    tier, device = TIERS[arguments.tier], "cuda" if torch.cuda.is_available() else "cpu"
    size, steps = tier["size"], 4 if arguments.smoke else arguments.steps or tier["steps"]
    shapes = dict(size=size, held_out="default", turned=1.0)
    data = load_dataset("shapes", num=10**6, **shapes)
    torch.manual_seed(arguments.seed)
    side = "image_size" if model.startswith("ddpm") else "img_size"
    network = create_model(model, **{side: size}, **overrides)
    diffusion = Diffusion(network, schedules.cosine(), "v", shape=(3, size, size))
    encode = teller(text_encoder("words", device=device), told)
    work = summary(diffusion, y=encode(["a red circle above a blue square"]))
    cost = f"{work.parameters:,} parameters, {work.flops / 1e6:.1f} MFLOPs"
    print(f"{experiment} {name}: {cost}, {steps} steps on {device}")
    prompts = 8 if arguments.smoke else tier["prompts"]
    asked = {"seen": load_dataset("shapes", split="test", **shapes).batch(range(prompts))[2],
             "held_out": load_dataset("shapes", split="held_out", **shapes).batch(range(prompts))[2]}
    options = TRAINING | dict(steps=steps, batch_size=8 if arguments.smoke else tier["batch_size"], seed=arguments.seed)
    if device == "cuda":
        options |= dict(amp="bf16", compile=True)
    folder = arguments.out / f"smoke-{name}" if arguments.smoke else (
        cache_folder() / "runs" / f"{experiment}-{arguments.tier}-{name}-{arguments.seed}")  # fmt: skip
    sampling = SAMPLING | (dict(steps=4) if arguments.smoke else {})

    def answers(model, captions):
        return sample(model, len(captions), y=encode(captions), progress=False, **sampling).clamp(-1, 1).cpu()

    def evaluate(model):
        few = asked["seen"][:max(8, prompts // 4)]
        return {key: float(value) for key, value in oracle_accuracy(answers(model, few), few).items()}

    history = train(diffusion, data, folder=folder, save_every=250, device=device, encode=encode, evaluate=evaluate,
                    evaluate_every=2 if arguments.smoke else tier["evaluate_every"], **options)  # fmt: skip
    pictures = {key: answers(history.ema, captions) for key, captions in asked.items()}
    accuracy = {key: {name: round(float(share), 4) for name, share in oracle_accuracy(pictures[key], captions).items()}
                for key, captions in asked.items()}  # fmt: skip
    record = {
        "model": {"name": model, "arguments": network.arguments, "parameters": work.parameters, "flops": work.flops},
        "data": {"name": "shapes"} | shapes, "told": told, "encoder": "words", "prompts": prompts,
        "captions": [*asked["seen"][:SHOWN // 2], *asked["held_out"][:SHOWN // 2]],
        "schedule": repr(diffusion.schedule), "prediction": diffusion.prediction, "training": options,
        "sampling": sampling, "seconds": round(history.seconds), "curve": curve(history.losses),
        "during": read_log(folder, "evaluations.csv"), "accuracy": accuracy,
        "worth": worth(history.ema, encode, load_dataset("shapes", split="test", **shapes), prompts),
    }  # fmt: skip
    return record, torch.cat([part[:SHOWN // 2] for part in pictures.values()])


@torch.no_grad()
def worth(diffusion, encode, data, count):
    """{changed: {"times", "losses", "mean", "error"}}: how the loss grows without a word, on pictures with two objects.

    changed: the first object's colour, shape or size is another; "order", the colours are exchanged (pictures with two
    of one colour do not count); the relation is that along the other axis; or "all": no text.
    `losses` are the differences at each of TIMES, "right" the loss itself; the same pictures and noise for all.
    """
    two = [place for place, caption in enumerate(data.batch(range(4 * count))[2]) if parse(caption).relation][:count]
    images, _, captions = data.batch(two)
    images, eps = images.to(diffusion.device), torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    eps = eps.to(diffusion.device)

    def losses(captions):  # (times, pictures)
        y = encode(captions).to(diffusion.device)
        ts = [torch.full((len(images),), t, device=images.device) for t in TIMES]
        return torch.stack([diffusion.loss(images, y, t=t, eps=eps) for t in ts]).cpu()

    right, found = losses(captions), {}
    for name in ("colour", "shape", "size", "order", "relation", "all"):
        others = [without(caption, name) for caption in captions]
        gap = (losses(others) - right)[:, [other != caption for other, caption in zip(others, captions)]]
        each = gap.mean(0)
        found[name] = in_numbers(gap) | {"error": round((each.std() / len(each) ** 0.5).item(), 6)}
    return found | {"right": in_numbers(right), "times": TIMES}


def in_numbers(losses):
    """Losses (times, pictures) by time, and in all."""
    return {"losses": [round(loss, 6) for loss in losses.mean(1).tolist()], "mean": round(losses.mean().item(), 6)}


def without(caption, name):
    """The caption without what `name` says, by which the loss may grow: with another word for it, or "" for all."""
    if name == "all":
        return ""
    if name == "relation":  # the other axis: as captions are turned, training has not shown the converse
        scene, relations = parse(caption), list(RELATIONS)  # left of, right of, above, below
        return describe(scene._replace(relation=relations[relations.index(scene.relation) ^ 2]))
    return changed(caption, name)


def teller(encoder, told):
    """captions -> Text of which the network is told "all", or of the tokens none ("pooled")."""

    def encode(captions):
        text = encoder(captions)
        return text if told == "all" else Text(text.tokens, torch.zeros_like(text.mask), text.pooled)

    return encode


if __name__ == "__main__":
    main()
