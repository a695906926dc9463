"""Published training recipes by name: what `minidiff train uvit_cifar10` does.

A `Recipe` is plain values: the network, the data, the arguments of Trainer and of sample(). Where the papers (and their
code) do not say something, the name of that hyper-parameter is a key of `guesses`, with the reason; what our Trainer
does otherwise is in `differs`. Schedule, prediction and time come from `process`, which asks the published weights
first (official/): they know what they were trained with.

Adam without further words means its own defaults here, betas 0.9 and 0.999; AdamW without weight decay is Adam.
"""

from dataclasses import dataclass, field, replace
from fnmatch import fnmatch

from minidiff.errors import unknown_name

IMAGENET = "ImageNet, a folder of pictures with one folder for each class"
LATENTS = "latents of ImageNet times their scale, in shards (.tar) of minidiff.datasets.cache_shards"
CAPTIONED = "captioned pictures in shards (.tar) with cached T5 embeddings (minidiff.datasets.cache_shards)"
WIDTH = "T5-XXL has 4096 channels, and 1024 are printed: the network becomes as wide as the embeddings it is given"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: everything that can be said in plain values."""

    source: str  # paper, and where in it or in its code
    network: str  # a name of create_model
    arguments: dict = field(default_factory=dict)  # of the network, where they are not those of the name
    data: str | None = None  # a name of load_dataset; None: your own, `wants` says what
    wants: str = ""
    options: dict = field(default_factory=dict)  # of the data set
    size: int  # of a picture, or of the latents
    flip: bool = True  # every picture also mirrored
    labels: bool = False  # the network is told the classes of the data set
    training: dict = field(default_factory=dict)  # arguments of Trainer
    sampling: dict = field(default_factory=dict)  # of minidiff.sample, for the paper's numbers
    process: dict = field(default_factory=dict)  # of Diffusion, where it is not `process(network)`
    guesses: dict = field(default_factory=dict)  # hyper-parameter that was not published -> where ours comes from
    differs: tuple = ()  # what the paper does and this training does not


# --- what a network is trained with besides data: schedule, prediction, time ----------------------------------------

VP = {"schedule": ("linear", {"steps": None}), "time": "999t"}
FAMILIES = {  # those without published weights of this very size
    "iuvit_*": {"schedule": ("linear", {"steps": 1000}), "time": "index"},
    "ascend_*": {"schedule": ("cosine", {"steps": 1000}), "time": "index"},
    "genvit_*": {"schedule": ("cosine", {"steps": 1000}), "time": "index"},
    "diffit_*": {"schedule": ("edm", {}), "prediction": "edm"},
    "edm_*": {"schedule": ("edm", {}), "prediction": "edm"},
    "sit_*": {"schedule": ("flow", {}), "prediction": "flow", "time": "1-t"},
    "ncsnpp_*": {"schedule": ("variance_exploding", {}), "prediction": "score", "time": "sigma"},
    "uvit_*": VP, "ddpmpp_*": VP,
    "dit_*": {"schedule": ("linear", {"steps": 1000}), "time": "index"},
    "ddpm_*": {"schedule": ("linear", {"steps": 1000}), "time": "index"},
    "*": {"schedule": ("cosine", {"steps": 1000}), "prediction": "v", "time": "index"},
}  # fmt: skip


def process(network):
    """{"schedule": (name, arguments), "prediction", ...} that a network of this name is trained with, for Diffusion.

    That of its published weights, of its family, or the cosine schedule and v prediction.
    """
    from minidiff.official.loading import released

    names = [network, "dit_xl_2" if fnmatch(network, "dit_?_?") else "sit_xl_2" if fnmatch(network, "sit_?_?") else ""]
    names.append("sit_xl_2" if fnmatch(network, "sit_xl_?") else "dit_xl_2" if fnmatch(network, "dit_xl_?") else "")
    known = released()
    for name in filter(known.get, names):
        return {key: value for key, value in known[name][1].items() if key not in ("network", "shape")}
    return next(dict(settings) for pattern, settings in FAMILIES.items() if fnmatch(network, pattern))


# --- the recipes ------------------------------------------------------------------------------------------------------

RECIPES = {}
# What Trainer is told where a recipe says nothing else: Adam at a constant rate, averages that begin with a copy.
ADAM = dict(warmup=0, decay=None, betas=(0.9, 0.999), weight_decay=0.0, clip=None, ema=0.9999, ema_warmup=False)
ANCESTRAL = dict(sampler="ddpm", steps=1000)
SDE_1000 = dict(sampler="euler_maruyama", steps=1000)
SECTIONS_250 = dict(sampler="ddpm", steps=250, spacing="sections")
MEMORY = "from memory, not checked against the paper"


def add(name, training, **rest):
    """Enter a recipe; the network has its name, and `training` is completed by ADAM."""
    RECIPES[name] = Recipe(training=ADAM | training, **{"network": name, **rest})


# DDPM, improved DDPM, ADM: facts of their code
DDPM = dict(lr=2e-4, warmup=5000, clip=1.0, batch_size=128, steps=800_000)
add("ddpm_cifar10", DDPM, source="Ho et al. 2020, appendix B", data="cifar10", size=32,
    sampling=ANCESTRAL | dict(variance="large"), guesses={"steps": MEMORY})
add("ddpm_lsun256", DDPM | dict(lr=2e-5, batch_size=64, steps=1_200_000), source="Ho et al. 2020, appendix B",
    data="lsun_church", size=256, sampling=ANCESTRAL | dict(variance="small"), guesses={"steps": MEMORY})

IDDPM_GUESSES = {"ema": "as ADM", "flip": "none, as nothing is said of it", "sampling": "all steps of the training"}
for name, training, data in (
    ("iddpm_cifar10", dict(lr=1e-4, batch_size=128, steps=500_000), dict(data="cifar10", size=32)),
    ("iddpm_imagenet64", dict(lr=1e-4, batch_size=128, steps=1_500_000), dict(wants=IMAGENET, size=64)),
    ("iddpm_imagenet64_cond", dict(lr=3e-4, batch_size=2048, steps=250_000),
     dict(wants=IMAGENET, size=64, labels=True)),
):
    add(name, training, source="Nichol and Dhariwal 2021, flags of its code", flip=False, guesses=IDDPM_GUESSES,
        sampling=dict(sampler="ddpm", steps=4000), **data)

for name, lr, batch_size, steps, size in (
    ("adm_imagenet64", 3e-4, 2048, 540_000, 64), ("adm_imagenet128", 1e-4, 256, 4_360_000, 128),
    ("adm_imagenet256", 1e-4, 256, 1_980_000, 256), ("adm_imagenet512", 1e-4, 256, 1_940_000, 512),
    ("adm_lsun256", 1e-4, 256, 500_000, 256),
):  # fmt: skip
    bedroom = name == "adm_lsun256"  # the only one without labels; cats had 200 K steps and horses 250 K
    data = dict(data="lsun_bedroom") if bedroom else dict(wants=IMAGENET, labels=True)
    add(name, dict(lr=lr, batch_size=batch_size, steps=steps, amp="fp16"), size=size, **data,
        source="Dhariwal and Nichol 2021, tables 11 to 13", sampling=ANCESTRAL if bedroom else SECTIONS_250,
        guesses={"weight_decay": "none, as nothing is said of it"},
        differs=("half-precision weights with float32 masters: here automatic mixed precision",
                 "pictures shrunk by halves with a box filter, then bicubic: here Lanczos"))

# score_sde and EDM
SONG = dict(lr=2e-4, warmup=5000, clip=1.0, batch_size=128)
add("ncsnpp_cifar10", SONG | dict(ema=0.999, steps=950_000), source="Song et al. 2021, appendix H", data="cifar10",
    size=32, sampling=dict(sampler="predictor_corrector", steps=1000, snr=0.16, t_end=1e-5),
    guesses={"flip": "as DDPM"})
add("ddpmpp_cifar10", SONG | dict(steps=1_300_000), source="Song et al. 2021, appendix H", data="cifar10", size=32,
    sampling=SDE_1000 | dict(t_end=1e-3), guesses={"flip": "as DDPM", "sampling": MEMORY})

# 200 million pictures, the rate rises over the first 10 million; the average forgets half in 0.5 million
KARRAS = dict(lr=1e-3, batch_size=512, steps=390_625, warmup=19_531, ema=None, ema_halflife=500_000, ema_warmup=True,
              weight="edm")
HEUN = dict(sampler="heun", spacing="karras")
NO_AUGMENTATION = "geometric augmentation with p = 0.12, which the network is told of: here mirrored pictures alone"
FLIPPED = {"flip": "in place of the augmentation"}
NAN = "gradients that are not finite count as 0: here they stop the run"
for body in ("ncsnpp", "ddpmpp"):
    for labels in (False, True):
        add(f"edm_{body}_cifar10" + "_cond" * labels, KARRAS, network=f"edm_{body}_cifar10", data="cifar10", size=32,
            source="Karras et al. 2022, table 7", labels=labels, sampling=HEUN | dict(steps=18),
            guesses=FLIPPED, differs=(NO_AUGMENTATION, NAN))
add("edm_adm_imagenet64", KARRAS | dict(lr=1e-4, batch_size=4096, steps=610_352, warmup=2441, ema_halflife=50_000_000,
                                        amp="fp16"),
    source="Karras et al. 2022, table 7", wants=IMAGENET, size=64, labels=True, flip=False,
    sampling=dict(sampler="churn", steps=256, spacing="karras", churn=40, churn_min=0.05, churn_max=50.0,
                  churn_noise=1.003),
    differs=(NAN, "loss scaled by 100 in half precision: here by a scale that adapts"))

# Flat transformers. GenViT: an "epoch" is 1171 iterations; 10 of them warm up, 500 in all
add("genvit_cifar10", dict(lr=1e-3, weight_decay=0.05, batch_size=128, steps=585_500, warmup=11_710, decay="cosine",
                           final_lr=1e-6, clip=1.0, ema=0.999),
    source="Yang et al. 2022, its training script", data="cifar10", size=32, flip=False, sampling=ANCESTRAL,
    differs=("the loss is 100 times the mean absolute error: here the mean squared error",
             "the average is updated before the step, and so one step late",
             "batches always in the same order: here shuffled"))

UVIT = dict(lr=2e-4, betas=(0.99, 0.99), weight_decay=0.03, warmup=5000, amp="fp16")
FAST = dict(sampler="dpm_3s", steps=50, spacing="log_snr", t_end=1e-4)
FAST_DISCRETE = dict(sampler="dpmpp_3s", steps=50, spacing="uniform", t_end=1e-3)
WORDS = "latents of MS-COCO and CLIP embeddings of its captions, in shards (.tar) of minidiff.datasets.cache_shards"
for name, training, data, sampling in (
    ("cifar10", dict(betas=(0.99, 0.999), warmup=2500, batch_size=128, steps=500_000), dict(data="cifar10", size=32),
     SDE_1000),
    ("celeba64", dict(batch_size=128, steps=500_000),
     dict(data="celeba", size=64, differs=("cropped to 128 pixels around (121, 89): here the middle square",)),
     SDE_1000),
    *((f"imagenet64_{size}", dict(lr=3e-4, batch_size=1024, steps=300_000), dict(wants=IMAGENET, size=64, labels=True),
       FAST) for size in "ml"),
    *((f"imagenet{pixels}_{size}", dict(batch_size=1024, steps=300_000 if (pixels, size) == (256, "l") else 500_000,
                                        p_uncond=0.15 if size == "l" else 0.1),
       dict(wants=LATENTS, size=pixels // 8, labels=True, flip=False),
       (FAST if size == "l" else FAST_DISCRETE) | dict(guidance=1.4 if pixels == 256 else 1.7))
      for pixels in (256, 512) for size in "lh"),
    *((name, dict(betas=(0.9, 0.9), batch_size=256, steps=1_000_000, p_uncond=0.1),
       dict(wants=WORDS, size=32, flip=False), FAST_DISCRETE | dict(guidance=2.0)) for name in ("coco", "coco_deep")),
):  # fmt: skip
    if "256" in name or "512" in name:  # mirrored where latents are cached, not here
        data["differs"] = ("latents drawn anew in each step: here as they were cached",)
    add(f"uvit_{name}", UVIT | training, source="Bao et al. 2023, table 6 and the configs of its code",
        sampling=sampling, **data)

# IU-ViT and ASCEND: no code was published, and of the tables only fragments survive
LIKE_UVIT = "as U-ViT"
IUVIT = {"betas": LIKE_UVIT, "weight_decay": LIKE_UVIT, "warmup": LIKE_UVIT, "batch_size": LIKE_UVIT, "ema": LIKE_UVIT,
         "flip": LIKE_UVIT, "prediction": "eps, as its schedule and sampler suggest", "time": "the step's number",
         "embed_dim": "fits the parameter counts printed in the paper", "num_heads": "heads of 64 channels"}
PATCHES = {"iuvit_cifar10": 500_000, "iuvit_celeba64": 500_000, "iuvit_church128": 450_000, "iuvit_church256": 150_000}
for name, steps in PATCHES.items():
    size = {"cifar10": 32, "celeba64": 64, "church128": 128, "church256": 256}[name[6:]]
    church = size > 64
    add(name, UVIT | dict(betas=(0.99, 0.999), lr=1e-4 if church else 2e-4, batch_size=128, steps=steps, amp=None),
        source="arXiv 2212.13771, settings of IU-ViT", data="lsun_church" if church else name[6:].rstrip("64"),
        size=size, sampling=SDE_1000, guesses=IUVIT | {"lr": "as its text-to-image model" if church else LIKE_UVIT})
add("iuvit_t2i_64", UVIT | dict(betas=(0.99, 0.999), lr=1e-4, batch_size=1024, steps=150_000, p_uncond=0.1, amp="bf16"),
    source="arXiv 2212.13771, settings of IU-ViT", wants=f"CC12M: {CAPTIONED}", size=64, flip=False,
    sampling=dict(sampler="ddim", steps=250, guidance=3.0), differs=(WIDTH,),
    guesses={key: why for key, why in IUVIT.items() if key != "num_heads"} | {
        "p_uncond": "as Imagen", "sampling": "DDIM is given, its steps and guidance are not"})

ASCEND = dict(lr=2e-4, weight_decay=0.03, warmup=5000, batch_size=128, steps=500_000)
UNSAID = ("lr", "weight_decay", "warmup", "batch_size", "steps", "ema", "flip")
ASCEND_GUESSES = dict.fromkeys(UNSAID, LIKE_UVIT) | {
    "network": "widths, blocks and windows: see backbones/ascend.py",
    "prediction": "eps, as its sampler suggests", "time": "the step's number"}
for size, data in {
    "cifar10": dict(data="cifar10", size=32), "cub64": dict(data="cub", size=64), "cub128": dict(data="cub", size=128),
    "celebahq": dict(wants="CelebA-HQ, a folder of pictures", size=256),
    "bedroom": dict(data="lsun_bedroom", size=256),
}.items():  # fmt: skip
    add(f"ascend_{size}", ASCEND, source="arXiv 2212.13771, settings of ASCEND", guesses=ASCEND_GUESSES,
        sampling=SDE_1000, **data)
for size in (64, 128):
    told = {key: why for key, why in ASCEND_GUESSES.items() if key != "lr" or size == 64}
    add(f"ascend_t2i_{size}", ASCEND | dict(lr=1.2e-4, batch_size=1024, p_uncond=0.1, amp="bf16"), flip=False,
        source="arXiv 2212.13771, settings of ASCEND", wants=f"LAION-Aesthetics: {CAPTIONED}", size=size,
        sampling=dict(sampler="ddim", steps=250, guidance=3.0), differs=(WIDTH,),
        guesses=told | ({"lr": "as the model of 128 pixels"} if size == 64 else {}) | {
            "p_uncond": "as Imagen", "sampling": "DDIM is given, its steps and guidance are not"})

# DiT, SiT, DiffiT
DIT = dict(lr=1e-4, batch_size=256, steps=400_000, p_uncond=0.1)
DIT_SAMPLING = SECTIONS_250 | dict(guidance=1.5)
ENCODED = ("mirrored, encoded and drawn anew in each step: here as cached",)
for size in ("s", "b", "l", "xl"):
    for patch in (2, 4, 8):
        steps = 7_000_000 if (size, patch) == ("xl", 2) else 400_000
        add(f"dit_{size}_{patch}", DIT | dict(steps=steps), source="Peebles and Xie 2023, section 4 and its code",
            wants=LATENTS, size=32, labels=True, flip=False, sampling=DIT_SAMPLING, differs=ENCODED)
        add(f"sit_{size}_{patch}", DIT | dict(steps=steps), source="Ma et al. 2024", wants=LATENTS, size=32,
            labels=True, flip=False, sampling=dict(sampler="euler_maruyama", steps=250, guidance=1.5), differs=ENCODED,
            guesses=dict.fromkeys(("lr", "batch_size", "steps", "ema", "p_uncond"), "as DiT, whose network it is")
            | {"sampling": "the SDE and guidance 1.5 are given, its steps are not"})
add("dit_xl_2_512", DIT | dict(steps=3_000_000), source="Peebles and Xie 2023, section 4 and its code", wants=LATENTS,
    size=64, labels=True, flip=False, sampling=DIT_SAMPLING, differs=ENCODED)

LIKE_EDM = "as EDM, whose training it takes"
DIFFIT = FLIPPED | {"ema_halflife": LIKE_EDM, "warmup": LIKE_EDM,
                    "num_blocks": "appendix I; appendix H says 4 in every level",
                    "head_dim": "not given", "mlp_ratio": "not given"}
for name, training, data, steps in (
    ("cifar10", dict(batch_size=512, lr=1e-3), dict(data="cifar10", size=32), 18),
    ("ffhq64", dict(batch_size=256, lr=2e-4), dict(wants="FFHQ, a folder of pictures", size=64), 40),
):
    training |= dict(steps=200_000, warmup=10_000_000 // training["batch_size"])
    add(f"diffit_{name}", KARRAS | training, source="Hatamizadeh et al. 2024, appendices H and I",
        sampling=HEUN | dict(steps=steps), guesses=DIFFIT, differs=(NO_AUGMENTATION, NAN), **data)
for size, lr, batch_size, guided in (
    (256, 3e-4, 256, dict(guidance=4.4, power=4.0)), (512, 1e-4, 512, dict(guidance=1.49)),
):  # fmt: skip
    add(f"diffit_xl_{size}", DIT | dict(lr=lr, batch_size=batch_size), wants=LATENTS, size=size // 8, labels=True,
        source="Hatamizadeh et al. 2024, section 4", flip=False, sampling=SECTIONS_250 | guided, differs=ENCODED,
        guesses={"steps": "not given", "p_uncond": "as DiT"})

# Ours: 16 pixels, about 1.2 million weights, minutes on two cores of a laptop
TINY = dict(batch_size=64, lr=1e-3, warmup=200, decay="cosine", final_lr=2e-5, clip=1.0, ema=0.999, ema_warmup=True,
            p_uncond=0.1)
for name, steps in (("emoji", 4000), ("shapes", 3000), ("digits", 1500)):
    add(f"{name}_tiny", TINY | dict(steps=steps), source="minidiff, tools/train_weights.py", network="ddpm_tiny",
        arguments={"ch": 24} if name == "digits" else {"ch": 32}, data=name, size=16, labels=True,
        flip=False, options={"scenes": "one"} if name == "shapes" else {},
        sampling=dict(sampler="ddim", steps=50, guidance=2.0),
        process={"schedule": ("cosine", {"steps": 1000}), "prediction": "v", "time": "index"})


def recipe(name):
    """The Recipe of this name; for a registered network that has none, what works for small ones, on emoji or digits.

    Raises ValueError for a name that is neither.
    """
    if name in RECIPES:
        return RECIPES[name]
    from minidiff.backbones import list_models

    known = [one for one in list_models(kind="denoiser") if not one.startswith("mlp")]  # they draw points in the plane
    if name not in known:
        raise unknown_name("recipe or network", name, {*RECIPES, *known})
    small = {"_test": dict(data="digits", size=8), "_tiny": dict(data="emoji", size=16)}
    data = small.get(name[-5:], dict(data=None, wants="pictures: the name of a data set, or a folder", size=0))
    return replace(RECIPES["emoji_tiny"], source="minidiff: defaults for a network without a recipe", network=name,
                   arguments={}, labels=False, process={}, sampling={}, **data,
                   training=ADAM | TINY | dict(steps=4000, p_uncond=0.0))  # fmt: skip
