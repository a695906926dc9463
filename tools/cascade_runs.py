"""Train one network for large pictures, or two, a small one and one that enlarges.

`python tools/cascade_runs.py cascade` makes experiment `cascade` of notebook 19: at equal compute, the multiply-adds of
all training steps, forward and backward, is a sentence better drawn straight at the final size (run `single`), or at 16
pixels and then enlarged (`cascade`, half the compute for each stage)? `cascade-clean` has the same first stage, and a
second one that has never seen noise on its small pictures. Each is asked for the captions of scenes that training has
not shown, and of pairs of words that it never showed together (`seen` and `held_out`; one object has few captions, so
that those of `seen` are all known): the oracle of the shapes reads what comes out, and, of pictures with one object,
minidiff.course.cascade.nearest, which never refuses. The second stage is also asked with the true small pictures, so
that one can tell whose mistake a wrong picture is.

Tier cpu: 32 pixels, one object; minutes a run on one core, and short on purpose, since with the compute of cpu-long, a
quarter of an hour, nearly everything a cascade draws is right. Tier gpu: 64 pixels, one or two objects.
A run is one file data/results/cascade/TIER/RUN.json with a strip of pictures, as tools/ablation.py writes them: eight
each of the kinds that `shown` names, for the first eight captions. Runs that are recorded are skipped, interrupted ones
go on.
"""

import time

import torch
import torch.nn.functional as F
from ablation import SHOWN, curve, record_runs

from minidiff import Diffusion, create_model, load_dataset, sample, schedules, summary
from minidiff.course.cascade import Enlarger, Shrunk, enlarge, explained, shrink
from minidiff.files import cache_folder
from minidiff.metrics import oracle_accuracy
from minidiff.text import text_encoder
from minidiff.training import read_log, train

SMALL = 16
TEXT = dict(text_dim=128, pooled_dim=384)
CPU = dict(size=32, scenes="one", batch_size=32, prompts=320,
           single=dict(ch=32, ch_mult=(1, 2, 2, 2)), base=dict(ch=32, ch_mult=(1, 2, 2)),
           enlarger=dict(channels=(32, 64, 96), num_blocks=(1, 1, 2)))  # fmt: skip
TIERS = {  # compute: the multiply-adds of a run's training
    "cpu": CPU | dict(compute=1.5e13, evaluate_every=150),
    "cpu-long": CPU | dict(compute=5e13, evaluate_every=500),
    "gpu": dict(size=64, scenes="both", compute=5e16, batch_size=256, prompts=1000, evaluate_every=2000,
                single=dict(ch=64, ch_mult=(1, 2, 2, 2, 2)), base=dict(ch=64, ch_mult=(1, 2, 2), num_res_blocks=2),
                enlarger=dict(channels=(64, 128, 192, 256), num_blocks=(1, 2, 2, 2))),
}  # fmt: skip
TRAINING = dict(lr=1e-3, warmup=100, ema=0.998, p_uncond=0.1)
SAMPLING = dict(steps=20, seed=1)
GUIDANCE = {"single": 3.0, "base": 3.0, "enlarger": 1.0}
LEVELS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)  # of noise on the small picture, when the second stage draws
SHOWN_LEVEL = 0.1
STAGES = {"single": ["single"], "cascade": ["base", "enlarger"]}
EXPERIMENTS = {"cascade": {"single": ("single", 1.0), "cascade": ("cascade", 1.0), "cascade-clean": ("cascade", 0.0)}}


def main():
    """Make all runs, or those that are named."""
    record_runs(__doc__, EXPERIMENTS, TIERS, run, lambda record: "right in all " + ", ".join(
        f"{name} {result['accuracy']['all']:.3f}" for name, result in record["results"]["seen"].items()))


def run(experiment, name, kind, top, arguments):
    """Train, question and describe one run: a dict of plain values, and its pictures."""
    tier = TIERS[arguments.tier] | (dict(batch_size=4, prompts=8, evaluate_every=2) if arguments.smoke else {})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = dict(size=tier["size"], scenes=tier["scenes"], held_out="default")
    encode, started = text_encoder("words", device=device), time.time()
    models, stages = {}, {}
    for stage in STAGES[kind]:
        models[stage], stages[stage] = learn(stage, name, tier, top, shapes, encode, device, arguments)
    results, pictures = {}, []
    for split in ("seen", "held_out"):
        data = load_dataset("shapes", split="test" if split == "seen" else split, **shapes)
        truth, _, captions = data.batch(range(tier["prompts"]))
        drawn = draw(models, truth, encode(captions), arguments.smoke)
        results[split] = {key: judged(images, captions, truth, tier["scenes"]) | {"seconds": round(seconds, 2)}
                          for key, (images, seconds) in drawn.items()}  # fmt: skip
        if split == "seen":
            shown, asked = to_show(drawn, truth), captions[:SHOWN // 4]
    record = {
        "data": {"name": "shapes"} | shapes, "small": SMALL, "top": top, "encoder": "words",
        "prompts": tier["prompts"], "captions": asked, "shown": list(shown), "levels": LEVELS,
        "shown_level": SHOWN_LEVEL, "sampling": SAMPLING | {"sampler": "dpmpp_2m", "guidance": GUIDANCE},
        "compute": sum(stage["compute"] for stage in stages.values()), "seconds": round(time.time() - started),
        "stages": stages, "results": results,
    }  # fmt: skip
    pictures = [F.interpolate(part.cpu(), size=tier["size"]) for part in shown.values()]
    return record, torch.cat(pictures)


def learn(stage, name, tier, top, shapes, encode, device, arguments):
    """The averaged model of one stage, trained with its share of the compute, and what there is to say of it."""
    size = SMALL if stage == "base" else tier["size"]
    torch.manual_seed(arguments.seed)
    options = dict(shape=(3, size, size))
    if stage == "enlarger":
        network = create_model("efficient_unet_tiny", img_size=size, **tier["enlarger"], **TEXT)
        diffusion = Enlarger(network, schedules.cosine(), "x0", small=SMALL, top=top, **options)
        inputs = {"low_res": torch.zeros(1, 3, SMALL, SMALL)}
    else:
        network = create_model("ddpm_tiny", image_size=size, **tier[stage], **TEXT)
        diffusion, inputs = Diffusion(network, schedules.cosine(), "v", **options), {}
    work = summary(diffusion, y=encode(["a red circle"]).to("cpu"), **inputs)
    each = 3 * work.flops / 2 * tier["batch_size"]  # multiply-adds of a step: backward costs twice forward
    share = tier["compute"] / (1 if stage == "single" else 2)
    steps = 4 if arguments.smoke else arguments.steps or round(share / each)
    print(f"{name}, {stage}: {work.parameters:,} parameters, {work.flops / 2e6:.1f} M multiply-adds a picture, "
          f"{steps} steps of {tier['batch_size']} on {device}")  # fmt: skip
    data = load_dataset("shapes", num=10**6, **shapes)
    training = TRAINING | dict(steps=steps, batch_size=tier["batch_size"], seed=arguments.seed)
    if device == "cuda":
        training |= dict(amp="bf16", compile=True)
    if stage != "enlarger":
        training["evaluate"] = obedience(encode, shapes, size, max(8, tier["prompts"] // 5), arguments.smoke)
    # The first stage is the same in all cascades: who comes second finds it trained.
    where = "base" if stage == "base" else f"{name}-{stage}"
    folder = arguments.out / f"smoke-{where}" if arguments.smoke else (
        cache_folder() / "runs" / f"cascade-{arguments.tier}-{where}-{arguments.seed}")  # fmt: skip
    history = train(diffusion, Shrunk(data, SMALL) if stage == "base" else data, folder=folder, save_every=250,
                    evaluate_every=tier["evaluate_every"], device=device, encode=encode, **training)  # fmt: skip
    training.pop("evaluate", None)
    return history.ema, {
        "model": {"name": network.name, "arguments": network.arguments, "parameters": work.parameters,
                  "flops": work.flops},
        "schedule": repr(diffusion.schedule), "prediction": diffusion.prediction, "training": training,
        "compute": each * steps, "seconds": round(history.seconds), "curve": curve(history.losses),
        "during": {} if stage == "enlarger" else read_log(folder, "evaluations.csv"),
    }  # fmt: skip


def obedience(encode, shapes, size, count, smoke):
    """The function model -> {attribute: share}: what both readers find in mid-run."""
    truth, _, captions = load_dataset("shapes", split="test", **shapes).batch(range(count))
    y = encode(captions)

    def evaluate(model):
        pictures = ask(model, y, 2 if smoke else SAMPLING["steps"], 3.0)
        found = {key: float(value) for key, value in oracle_accuracy(pictures, captions).items()}
        if shapes["scenes"] == "one":
            found["nearest"] = explained(pictures, captions)[:, 3].float().mean().item()
        return found

    return evaluate


def ask(model, y, steps, guidance):
    """Pictures by one stage alone, on the CPU."""
    options = dict(sampler="dpmpp_2m", steps=steps, seed=SAMPLING["seed"], progress=False)
    return sample(model, len(y.tokens), y=y, guidance=guidance, **options).clamp(-1, 1).cpu()


def draw(models, truth, y, smoke):
    """{what: (pictures, seconds)}: single; or base, and by level what is made of it, and of the true small pictures."""
    steps, drawn = 2 if smoke else SAMPLING["steps"], {}

    def timed(key, make):
        started = time.time()
        drawn[key] = make(), time.time() - started

    if "single" in models:
        timed("single", lambda: ask(models["single"], y, steps, GUIDANCE["single"]))
        return drawn
    timed("base", lambda: ask(models["base"], y, steps, GUIDANCE["base"]))
    for kind, low in (("cascade", drawn["base"][0]), ("enlarged", shrink(truth, SMALL))):
        for level in LEVELS:
            timed(f"{kind}-{level:g}", lambda level=level, low=low: enlarge(
                models["enlarger"], low, y, level=level, guidance=GUIDANCE["enlarger"], steps=steps,
                seed=SAMPLING["seed"] + 1).clamp(-1, 1).cpu())
    return drawn


def judged(images, captions, truth, scenes):
    """What the readers find in pictures, for each attribute and, in `right`, picture by picture, "1" for all right.

    error: the root mean squared difference from the true pictures of the same captions, which means something where
    these were enlarged. sharpness: the mean difference of neighbouring pixels, over that of the true pictures.
    """
    truth = shrink(truth, images.shape[-1])
    found = {
        "accuracy": {key: round(float(share), 4) for key, share in oracle_accuracy(images, captions).items()},
        "right": bits(oracle_accuracy(image[None], [text])["all"] for image, text in zip(images, captions)),
        "error": round((images - truth).square().mean().sqrt().item(), 4),
        "sharpness": round((contrast(images) / contrast(truth)).item(), 4),
    }  # fmt: skip
    if scenes == "one":
        right = explained(images, captions)
        names = ("size", "colour", "shape", "all")
        found["nearest"] = {key: round(value, 4) for key, value in zip(names, right.float().mean(0).tolist())}
        found["nearest_right"] = bits(right[:, 3])
    return found


def contrast(images):
    """The mean absolute difference of pixels that are neighbours in a row or a column."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


def bits(values):
    """Truth values as a string of 0 and 1."""
    return "".join(str(int(value)) for value in values)


def to_show(drawn, truth):
    """{kind: pictures}, four kinds of eight in a cascade, 32 of a single stage."""
    count = SHOWN // 4
    if "single" in drawn:
        return {"single": drawn["single"][0][:SHOWN]}
    return {
        "base": drawn["base"][0][:count], "cascade": drawn[f"cascade-{SHOWN_LEVEL:g}"][0][:count],
        "enlarged": drawn[f"enlarged-{SHOWN_LEVEL:g}"][0][:count], "true": truth[:count],
    }  # fmt: skip


if __name__ == "__main__":
    main()
