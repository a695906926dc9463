# %% [markdown]
# # 19 One stage or a cascade
#
# After this notebook you can decide with numbers whether to draw large pictures at once or in two stages, say which stage made a mistake, and plan the training of a model that fills a cluster.
#
# Run time: one to two minutes on a CPU with two idle cores; expect as long on a T4 or a big GPU. Nothing is downloaded.
#
# You will
#
# - build a model that enlarges, and find out what noise on its small picture is for,
# - compare one stage with a cascade at equal compute, and share out the blame,
# - threshold as Imagen does, and see it fail,
# - compute memory, time and disk for 582 million weights, and take the first steps.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## What a pixel costs
#
# In [notebook 18](18_text_to_image.ipynb) a sentence became a picture of 16 pixels. How do you get to 64, to 1024? Double the side, and every convolution has four times the work. Here is the U-Net of this course at four sizes (each doubling adds a level), and a training of fixed length in multiply-adds.

# %%
import torch
import torch.nn.functional as F

from minidiff.course.cascade import Enlarger, enlarge, explained, shrink
from minidiff.text import text_encoder

encode = text_encoder("words", device=run.device)
TEXT = dict(text_dim=128, pooled_dim=384)

def multiply_adds(size, y):
    """Multiply-adds of one forward pass of a U-Net for one picture."""
    levels = (1, 2, 2, 2, 2, 2)[:size.bit_length() - 2]
    with torch.device("meta"):  # shapes without values: nothing is computed, and no memory taken
        net = minidiff.create_model("ddpm_tiny", image_size=size, ch=32, ch_mult=levels, **TEXT)
    return minidiff.summary(net, y=y, shape=(3, size, size)).flops / 2

words = encode(["a small red circle"]).to("cpu")
cost = {size: multiply_adds(size, words) for size in (16, 32, 64, 128)}
for size, work in cost.items():
    print(f"{size:4} pixels: {work / 1e6:6.0f} M multiply-adds each, 1.5e13 for {1.5e13 / (3 * work):9,.0f} pictures")
plots.lines({"U-Net": (list(cost), list(cost.values())), "16-pixel cost x (side / 16)²":
             (list(cost), [cost[16] * (size / 16) ** 2 for size in cost])}, log="xy", x="side", y="multiply-adds")

# %% [markdown]
# A training step costs about three forward passes: one forward, two backward. So at 32 pixels you get about a quarter of the pictures for your money, at 64 about a sixteenth. (1.5e13 is what each recorded run below may spend.)
#
# A **cascade** decides what is where on a small picture, where looking is cheap, and leaves the edges to a second model. Imagen goes from 64 pixels to 256 and 1024. **ASCEND**, the model of [notebook 15](15_ascend.ipynb), draws in one stage, like this course so far. Which is better at equal compute?
#
# ## Two stages, exactly
#
# Let $z$ be the small version of a picture $x$, the mean over squares of pixels. It is a function of $x$, so $p(x \mid c) = p(x, z \mid c)$, and the product rule says for every caption $c$
#
# $$p(x \mid c) = p(z \mid c)\; p(x \mid z, c).$$
#
# A cascade is no approximation. Two models that were perfect would be a perfect one together. All its trouble comes from imperfection: the second model is trained with the $z$ of true pictures, and used with what the first one draws.
#
# What is there to do in $p(x \mid z, c)$? More than to interpolate.

# %%
SMALL, SIZE = 8, 16  # here in the notebook; the recorded runs go from 16 to 32
data = minidiff.load_dataset("shapes", size=SIZE, scenes="one", held_out="default")
unseen = minidiff.load_dataset("shapes", size=SIZE, scenes="one", held_out="default", split="test")
count = 96 if run.tier != "smoke" else 8
large, _, captions = unseen.batch(range(count))
small, y = shrink(large, SMALL), encode(captions)
blurred = F.interpolate(small, size=SIZE, mode="bilinear")

def error(drawn):
    """The root mean squared difference from the true large picture, for each picture (B,)."""
    return (drawn - large).square().mean((1, 2, 3)).sqrt()

print(f"bilinear: error {error(blurred).mean():.3f} of a range of 2")
blocks = F.interpolate(small, size=SIZE)
plots.filmstrip(torch.stack([part[:8] for part in (blocks, blurred, large)], dim=1), captions[:8],
                rows=["z, 8 pixels", "bilinear", "x, 16 pixels"])

# %% [markdown]
# Several $x$ have the same $z$. A regression would answer with their mean, which is blurred. So the second stage is a diffusion model too, with $z$ as a further condition.
#
# The network is Imagen's **Efficient U-Net**. It sees six channels, the noisy picture and the small one enlarged, and a number that is new: how noisy the *small* picture is. After one convolution it halves the map, and all else happens on smaller ones, which is cheap. No skip leads round that halving. So the noise of every single pixel would have to be carried through it, if the output had to tell it again, as "eps" asks always, and "v" at small $t$. Therefore it predicts `x0`, most of which the small picture shows.
#
# ## Noise on purpose
#
# **Noise conditioning augmentation**: in training, the small picture goes through the forward process itself, to a level $a$ drawn anew for each picture, uniformly from $[0, 1]$. It is to the small picture what $t$ is to the large one:
#
# $$\tilde z = \alpha(a)\, z + \sigma(a)\, \varepsilon', \qquad \text{and the network is told } a.$$
#
# When you draw, you choose $a$: more noise, less trust. Why should it help to spoil a good input? Say the first stage's picture is $z' = z + \delta$, where $\delta$ is a defect no true picture has. A network that has only seen true ones is asked about something it never met, and may do anything. Under noise the two become alike. Show one of $\tilde z$ and $\tilde z'$ to a judge who knows $z$ and $z'$: two Gaussians of the same $\sigma$ have to be told apart, whose means differ by $\alpha \delta$. At best that succeeds with the probability
#
# $$P = \Phi\!\left(\frac{\alpha(a)\,\lVert\delta\rVert}{2\,\sigma(a)}\right),$$
#
# where $\Phi$ is the normal distribution function. At $P = \tfrac12$ the network cannot know that it was deceived. Check the formula with a judge who picks the nearer mean.

# %%
schedule = minidiff.schedules.cosine()
levels = torch.linspace(0.02, 1, 50)

def told_apart(distance, a):
    alpha, sigma = schedule(a)
    return torch.distributions.Normal(0, 1).cdf(alpha * distance / (2 * sigma))

delta = 0.1 * torch.randn(small[0].shape, generator=torch.Generator().manual_seed(0))
for a in (0.1, 0.2, 0.4):
    alpha, sigma = schedule(a)
    seen = alpha * (small[0] + delta) + sigma * torch.randn(20_000, *delta.shape)
    own, other = ((seen - alpha * z).flatten(1).norm(dim=1) for z in (small[0] + delta, small[0]))
    right, P = (own < other).float().mean(), told_apart(delta.norm(), torch.tensor(a))
    print(f"a = {a}: right in {right:.4f}, formula {P:.4f}")
    assert abs(right - P) < 0.015
distances = {f"error {size} a value": torch.tensor(size * delta.numel() ** 0.5) for size in (0.02, 0.05, 0.1)}
distances["red become blue"] = (small[1] - small[1].flip(0)).norm()  # the red square of the strip above
at = {name: told_apart(distance, torch.tensor(0.4)).item() for name, distance in distances.items()}
print("at a = 0.4:", ", ".join(f"{name}: {P:.3f}" for name, P in at.items()))
assert at["error 0.02 a value"] < 0.6 and at["red become blue"] > 0.99
curves = {name: (levels, told_apart(distance, levels)) for name, distance in distances.items()}
plots.lines(curves, x="level a", y="told apart from the truth")

# %% [markdown]
# A roughness of 0.02, a hundredth of the range, is found out at small levels and drowns at middling ones. A wrong colour is a large $\delta$: at $a = 0.4$ it is still plain. That is what you want. Noise hides the *style* of the first stage's errors and keeps its decisions. (Distances add up over the values: in a larger picture the same roughness takes more noise to hide.)
#
# By hand it is two lines. The package's `Enlarger` is a `Diffusion` whose loss does them; compare.

# %%
def noised(z, a, eps):
    alpha, sigma = (part.view(-1, 1, 1, 1) for part in schedule(a))
    return alpha * z + sigma * eps

def new_enlarger(top):
    torch.manual_seed(0)
    net = minidiff.create_model("efficient_unet_tiny", img_size=SIZE, **TEXT)
    return Enlarger(net.to(run.device), schedule, "x0", small=SMALL, top=top, shape=(3, SIZE, SIZE))

shown = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
eps = torch.randn(small[:4].shape, generator=torch.Generator().manual_seed(1))
model = new_enlarger(1.0)
for a in shown:
    theirs = model.shown(small[:4], torch.full((4,), a), eps)
    assert torch.allclose(noised(small[:4], torch.full((4,), a), eps), theirs["low_res"], atol=1e-6)
    assert torch.allclose(theirs["low_res_time"], torch.tensor(999 * a))
plots.filmstrip([noised(small[:4], torch.full((4,), a), eps) for a in shown], [f"a = {a}" for a in shown])

# %% [markdown]
# At $a = 1$ the small picture says nothing. There the second stage is a text-to-image model of its own, and the caption is all it has.
#
# ## Does it help?
#
# Train two, from 8 to 16 pixels: one with $a$ from $[0, 1]$, one that has only seen clean small pictures. Then damage the small pictures in two ways a first stage might: grain, and a blur.

# %%
steps = budget("each of two enlargers", smoke=3, cpu=700, gpu=4000, seconds_per_step=0.03)
recipe = dict(batch_size=32 if run.tier != "smoke" else 4, lr=2e-3, warmup=20, ema=0.98, p_uncond=0.1,
              encode=encode, progress=False)
trained = {}
for name, top in (("noise in training", 1.0), ("clean in training", 0.0)):
    trained[name] = minidiff.training.train(new_enlarger(top), data, steps=steps, **recipe).ema

grain = torch.randn(small.shape, generator=torch.Generator().manual_seed(2))
soft = F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
damaged = {"true": small, "grain 0.1": small + 0.1 * grain, "grain 0.2": small + 0.2 * grain,
           "blur": 0.5 * small + 0.5 * soft}

# %% [markdown]
# The measure: enlarge, and take the error against the true large picture. It is not zero even for a perfect enlarger, which draws *one* of the pictures that fit. Bilinear interpolation, which learns nothing, stands beside.

# %%
ways = {"clean in training, a = 0": ("clean in training", 0.0), "noise in training, a = 0": ("noise in training", 0.0),
        "noise in training, a = 0.2": ("noise in training", 0.2)}
drawn = {("bilinear", kind): F.interpolate(z, size=SIZE, mode="bilinear") for kind, z in damaged.items()}
for way, (name, level) in ways.items():
    for kind, z in damaged.items():
        made = enlarge(trained[name], z, y, level=level, steps=10 if run.tier != "smoke" else 2)
        drawn[way, kind] = made.clamp(-1, 1).cpu()
errors = {key: error(pictures) for key, pictures in drawn.items()}
print(f"{'':28}" + "".join(f"{kind:>11}" for kind in damaged))
for way in ("bilinear", *ways):
    print(f"{way:28}" + "".join(f"{errors[way, kind].mean():11.3f}" for kind in damaged))
clean, *noisy = ways
for way in noisy:
    for kind in damaged:
        gap = errors[way, kind] - errors[clean, kind]  # of the same pictures, so their own difficulty cancels
        luck = (gap.mean() / (gap.std() / len(gap) ** 0.5).clamp(min=1e-9)).item()
        verdict = "no difference beyond luck" if abs(luck) < 2 else "smaller error" if luck < 0 else "larger error"
        print(f"{way} against clean, {kind}: {verdict} ({gap.mean():+.3f}, {luck:+.1f} standard errors)")
rows = [F.interpolate(damaged["grain 0.2"], size=SIZE), *(drawn[way, "grain 0.2"] for way in ways), large]
plots.filmstrip(torch.stack([row[:8] for row in rows], dim=1),
                rows=["given: grain 0.2", "clean", "noise, a = 0", "noise, a = 0.2", "true"])

# %% [markdown]
# Read the table by rows first. How much a row grows to the right is what the model suffers from a first stage that is not true. Its first column tells what safety costs: at $a > 0$ some of a good picture is thrown away. Then read it by columns, since both count: steadiness is no use to a model that starts from a larger error. The lines below the table compare picture by picture. The network that learns all levels has more to learn in the same steps. Here that costs more than it saves, everywhere: 700 steps are few. But along its row the error hardly grows, and that is what a rough first stage will ask for.
#
# ## Equal compute
#
# Now with a first stage that is a model. These runs were recorded, at **32 pixels** rather than 64 and with one object a picture, since one core had to do. They are short on purpose, 1.5e13 multiply-adds each; two longer ones, 5e13, show what more compute does. `python tools/cascade_runs.py cascade --tier cpu` makes them again. The same tool with `--tier gpu` goes from 16 to 64 pixels, with one or two objects; nothing below comes from that tier.
#
# `single` is a U-Net at 32 pixels. `cascade` is the same U-Net with a level less at 16 pixels, and an Efficient U-Net from 16 to 32, for half the multiply-adds each. A third run, `cascade-clean`, has the same first stage, and a second that never saw noise.
#
# All draw for scenes that they have not seen, `single` and the base at guidance 3, the enlarger at 1. The captions are not new: with one object there are forty, and training has shown them all. The base's pictures are 16 pixels. In the second row the cascade enlarges them; in the third it is handed the true small pictures instead.

# %%
from IPython.display import Markdown

from minidiff.course.recorded import recorded

runs, long = recorded("cascade", "cpu"), recorded("cascade", "cpu-long")
single, cascade = runs["single"], runs["cascade"]
lines = ["| run | stage | weights | M multiply-adds a picture | steps x batch | all of training | seconds |",
         "|---|---|" + "---:|" * 5]
for name, record in runs.items():
    for stage, about in record["stages"].items():
        of, training = about["model"], about["training"]
        lines.append(f"| {name} | {stage} | {of['parameters']:,} | {of['flops'] / 2e6:.0f} | {training['steps']:,} x "
                     f"{training['batch_size']} | {about['compute']:.2g} | {about['seconds']} |")
display(Markdown("\n".join(lines)))
parts = dict(zip(cascade["shown"], cascade["samples"].unflatten(0, (-1, 8))))
names = {"base": "base, 16 px", "cascade": "cascade", "enlarged": "true z, enlarged", "true": "true"}
rows = [parts[kind] for kind in names] + [single["samples"][:8]]
plots.filmstrip(torch.stack(rows, dim=1), cascade["captions"], rows=[*names.values(), "single"])

# %% [markdown]
# Equal compute is a choice. The weights are not equal, and two stages may be trained side by side on two machines.
#
# ## Who obeys?
#
# Two readers judge. The oracle of [notebook 18](18_text_to_image.ipynb) reads a picture strictly, and refuses a rough one, which counts as wrong. The second never refuses: it lays every shape in every size, colour and place over the picture, and takes the one with the least squared difference. With a template $m$ and what a colour takes from white, $k$, and $d$ the picture's distance from white,
#
# $$\min_{m,\,k} \lVert d - k\,m \rVert^2 = \lVert d \rVert^2 - \max_{m,\,k} \big(2\,\langle d, k\,m \rangle - \lVert k\,m \rVert^2\big),$$
#
# so one correlation answers for all places. A wrong answer of the second reader is a wrong idea (guesses are right once in 48); of the first, it may be a bad edge. Check it by trying everything, and see what both readers make of true pictures under noise.

# %%
from minidiff.course.cascade import nearest, templates
from minidiff.datasets.scenes import COLOURS
from minidiff.metrics import oracle_accuracy

covers, names = templates(SIZE)  # (8, K, K) and the (size, shape) of each
ink = 2 - torch.tensor(list(COLOURS.values())) / 127.5  # k: what each colour takes from white
ideas = ink[:, None, :, None, None] * covers[:, None]  # k m: (6 colours, 8 shapes, 3, K, K)

def by_trying(picture):
    """(size, colour, shape) with the least squared difference, by comparing each idea at each place."""
    K = covers.shape[-1]
    d = F.pad(1 - picture.clamp(-1, 1), [K // 2] * 4)
    patches = d.unfold(1, K, 1).unfold(2, K, 1).movedim(0, 2)  # (S, S, 3, K, K): what is under the idea
    under = (patches - ideas[:, :, None, None]).square().sum((4, 5, 6))  # and outside, d remains as it is
    least = (d.square().sum() - patches.square().sum((2, 3, 4)) + under).amin((2, 3))
    colour, kind = divmod(least.argmin().item(), len(names))
    return names[kind][0], list(COLOURS)[colour], names[kind][1]

for noise in (0, 0.1, 0.4):
    rough = large + noise * torch.randn(large.shape, generator=torch.Generator().manual_seed(3))
    assert nearest(rough[:8]) == [by_trying(picture) for picture in rough[:8]]
    print(f"noise {noise}: right say oracle {oracle_accuracy(rough.clamp(-1, 1), captions)['all']:.0%}, "
          f"nearest {explained(rough, captions)[:, 3].float().mean():.0%}")

# %% [markdown]
# Now the recordings. Standard errors count the luck of captions and noise. They do not count another training: there is one seed. The last figure shows how the two longer runs got there, with fewer pictures in mid-run. Its horizontal axis is the compute spent; the cascade's base stops at its half.

# %%
def readings(record, key, split="seen"):
    """{reader: (share of pictures that are right, its standard error)}."""
    found, n = record["results"][split][key], record["prompts"]
    shares = {"oracle": found["accuracy"]["all"], "nearest": found["nearest"]["all"]}
    return {reader: (share, (share * (1 - share) / n) ** 0.5) for reader, share in shares.items()}

level = f"{cascade['shown_level']:g}"
entries = {"single": (single, "single"), "base alone, 16 px": (cascade, "base"),
           f"cascade, a = {level}": (cascade, f"cascade-{level}"),
           f"true z, enlarged, a = {level}": (cascade, f"enlarged-{level}")}
def against(one, two, reader):
    (a, ea), (b, eb) = readings(two, f"cascade-{level}")[reader], readings(one, "single")[reader]
    return f"cascade {a:.3f}, single {b:.3f}: {(a - b) / max((ea**2 + eb**2) ** 0.5, 1e-9):+.1f} standard errors"

for reader in ("oracle", "nearest"):
    values = {name: readings(*entry)[reader] for name, entry in entries.items()}
    display(plots.bars([f"{reader}: {name}" for name in values], [v for v, _ in values.values()],
                       [e for _, e in values.values()], x="all right, new scenes"))
    for spent, pair in {"1.5e13": (single, cascade), "5e13": (long["single"], long["cascade"])}.items():
        print(f"{reader}, {spent}: {against(*pair, reader)}")
stages = {"single": long["single"]["stages"]["single"], "base": long["cascade"]["stages"]["base"]}
curves = {f"{name}, {reader}": ([k / about["training"]["steps"] * about["compute"] for k in about["during"]["step"]],
                                about["during"][column])
          for name, about in stages.items() for reader, column in (("oracle", "all"), ("nearest", "nearest"))}
plots.lines(curves, x="multiply-adds of training", y="all right in mid-run")

# %% [markdown]
# With little compute the cascade is far ahead; with more than three times as much both are nearly always right. Its lead was one of speed: the base has learnt what is where at 1e13, with an equal enlarger 2e13, the single stage at 4e13.
#
# ## Whose mistake?
#
# A cascade's wrong picture has one of two authors. Read the small picture, then the large one made of it: **inherited** if both are wrong, **broken** if the small one was right, **repaired** if only the large one is right.

# %%
def tables(level, split, reader):
    """(B,) bool each: is the base's picture right, the large one made of it, and that of the true small one?"""
    keys, name = ("base", f"cascade-{level}", f"enlarged-{level}"), {"oracle": "right", "nearest": "nearest_right"}
    return [torch.tensor([bit == "1" for bit in cascade["results"][split][key][name[reader]]]) for key in keys]

@plots.quiet
def draw_blame(level):
    import matplotlib.pyplot as plt
    figure, ax = plt.subplots(figsize=(8.2, 2.6))
    colors = {"right": "#A9D3EE", "repaired": "#0072B2", "broken": "#D55E00", "inherited": "#E4C4B0"}
    bars = [(reader, split) for reader in ("oracle", "nearest") for split in ("seen", "held_out")]
    for row, bar in enumerate(bars):
        base, final, _ = tables(level, *bar[::-1])
        parts, start = (base & final, ~base & final, base & ~final, ~base & ~final), 0
        for kind, part in zip(colors, parts):
            share = part.float().mean().item()
            ax.barh(row, share, left=start, color=colors[kind], label=None if row else kind)
            ax.text(start + share / 2, row, f"{share:.0%}" * (share > 0.04), ha="center", va="center", fontsize=8.5)
            start += share
    ax.set(yticks=range(4), yticklabels=[", ".join(bar) for bar in bars], xlim=(0, 1), ylim=(3.5, -0.5))
    ax.grid(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure

draw_blame(level)

# %% [markdown]
# "Held out" are captions with a pair of words that training never showed together. By the oracle more is *inherited* there, and not more *broken*: to put known words together anew is the first stage's job, and the second does not mind. (The milder reader sees no such difference, and eight captions are few.)
#
# There is a control: the same second stage on true small pictures. What it spoils there is its own weakness. What it spoils beyond comes from the mismatch. (Printed with the next figure: by the oracle nearly all is weakness, by the milder reader a third is mismatch.)
#
# ## How much noise, when you draw?
#
# Now turn the level, for the base's pictures and for true ones. Obedience is not everything. How far are enlarged true pictures from the originals, and how sharp is the result? Sharpness is the mean difference of neighbouring pixels, over that of true pictures: below 1 is blurred, above is rough.

# %%
LEVELS, PANELS = cascade["levels"], {
    "right, oracle": lambda found: found["accuracy"]["all"], "right, nearest": lambda found: found["nearest"]["all"],
    "error against the truth": lambda found: found["error"], "sharpness": lambda found: found["sharpness"]}

@plots.quiet
def draw_levels():
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 5.2))
    for ax, (title, value) in zip(axes.flat, PANELS.items()):
        for name, color in (("cascade", "#0072B2"), ("cascade-clean", "#D55E00")):
            for kind, style, of in (("cascade", "-", "base's z"), ("enlarged", "--", "true z")):
                if name in runs and (kind, title[:5]) != ("cascade", "error"):  # other places are no error
                    seen = runs[name]["results"]["seen"]
                    ax.plot(LEVELS, [value(seen[f"{kind}-{a:g}"]) for a in LEVELS], style, color=color, marker="o",
                            markersize=3, label=f"{of}, {'clean' if 'clean' in name else 'noise in'} training")
        ax.set(xlabel="level a when drawing", title=title)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure

for reader in ("oracle", "nearest"):
    base, final, alone = tables(level, "seen", reader)
    spoilt = (base & ~final).sum().item() / max(base.sum().item(), 1)
    print(f"{reader}, a = {level}: it spoils {1 - alone.float().mean():.1%} of the true small pictures, "
          f"{spoilt:.1%} of the base's right ones")
draw_levels()

# %% [markdown]
# At $a = 0$ no noise is used in drawing. Trained on clean pictures, the second stage enlarges true ones without a mistake, better than the other, but what of the base's? The oracle prefers noise in *training*, the milder reader does not: the clean-trained network keeps more of the ideas and spoils more of the edges. A level that it never saw ruins it for the oracle at once, for the other reader later.
#
# With noise in training the caption takes over from the picture to the right. At $a = 1$ the second stage stands alone, with half the compute, and is right more often than the single stage, by both readers. So part of the cascade's lead has nothing to do with stages: its second network is cheaper, and saw twice as many pictures. Noise in *drawing* never clearly helped here.
#
# ## Too bright: thresholding
#
# Imagen wants strong guidance, and strong guidance leaves the range: the predicted $\hat x_0$ has values beyond $\pm 1$, which no picture has. The next step starts from there, and may predict something yet brighter. Watch `shapes-ascend`, without clipping.

# %%
from minidiff.pipeline import TextToImage

pipe = TextToImage.from_pretrained("shapes-ascend", device=run.device)

def paper(images):
    """The background's brightness: the median pixel's brightest channel, 1 for white."""
    return images.amax(1).flatten(1).median(1).values.mean().item()

asked = captions[:24 if run.tier != "smoke" else 4]
drawing = dict(y=pipe.encoder(asked), sampler="dpmpp_2m", steps=20 if run.tier != "smoke" else 3, progress=False)
ways = {"none": False, "static": True, "dynamic": "dynamic"}
pictures, beyond = {}, {}
for scale in (1.0, 4.0, 12.0):
    for way, clipped in ways.items():
        beyond[scale, way] = []
        def watch(step, seen=beyond[scale, way]):
            seen.append((step.t, step.x0.abs().amax((1, 2, 3)).mean().item(), paper(step.x0)))
        pictures[scale, way] = minidiff.sample(pipe.diffusion, len(asked), guidance=scale, clipped=clipped,
                                               on_step=watch, **drawing)
plots.lines({f"guidance {scale:g}": tuple(zip(*beyond[scale, "none"]))[:2] for scale in (1.0, 4.0, 12.0)},
            x="t", y="largest |x0| of a picture")

# %% [markdown]
# The **static** cure clips every $\hat x_0$ to $[-1, 1]$: `sample` does it unless told otherwise. But what lies beyond is pushed onto the wall, where differences vanish: colours saturate, as Imagen's authors saw. (Here they do not: white lies at the wall anyway.) The **dynamic** one takes $s$, the $p$-quantile of $|\hat x_0|$ over all values of one picture, with $p = 0.995$, and
#
# $$s \leftarrow \max(s, 1), \qquad \hat x_0 \leftarrow \operatorname{clamp}(\hat x_0, -s, s) / s.$$
#
# Where the prediction fits into the range, nothing happens. Otherwise the whole picture shrinks into it. By hand, and then on pictures: how many values end at the wall, who obeys, and how bright the background is, which should be 1. The strip shows guidance 12.

# %%
from minidiff.guidance import dynamic_threshold
from minidiff.prediction import Prediction

def threshold(x0, p=0.995):
    s = torch.quantile(x0.abs().flatten(1), p, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    return x0.clamp(-s, s) / s

x0 = 0.7 * torch.randn(6, 3, 16, 16) * torch.linspace(0.2, 3, 6).view(-1, 1, 1, 1)
theirs = dynamic_threshold(lambda x_t, t: Prediction("x0", x_t, x_t, *schedule(t)))(x0, 0.5).x0
assert torch.allclose(threshold(x0), theirs, atol=1e-6) and threshold(x0).abs().max() <= 1

obeyed = {}
print(f"{'':>24}{'at the wall':>13}{'oracle':>9}{'nearest':>9}{'white':>8}")
for (scale, way), images in pictures.items():
    images = images.cpu().clamp(-1, 1)
    wall, white = (images.abs() > 0.999).float().mean(), paper(images)
    obeyed[scale, way], idea = oracle_accuracy(images, asked)["all"], explained(images, asked)[:, 3].float().mean()
    print(f"guidance {scale:4g}, {way:>9}{wall:13.1%}{float(obeyed[scale, way]):9.0%}{idea:9.0%}{white:8.2f}")
plots.filmstrip(torch.stack([pictures[12.0, way][:8].cpu() for way in ways], dim=1), asked[:8], rows=list(ways))

# %% [markdown]
# ## A surprise
#
# Dynamic thresholding does what it promises: compare the shares at the wall (though most values of true pictures are there). But look at the last column, and at the last row of pictures. What became of the white paper?
#
# The quantile takes for granted that hardly any value of a true picture is at the wall. Of most photographs that is true. Our pictures are drawn on white: most values *are* 1. As soon as half a per cent of the values overshoot, $s > 1$, and all the white becomes $1/s$. And then? The next step sees a grey picture, and is divided again. But the network has only ever seen white paper, and pulls back. Check the premise on true pictures, the $1/s$ on the same with a few values too bright, and who wins in the steps that you watched.

# %%
sets = {"shapes": large, "emoji": minidiff.load_dataset("emoji", size=16).images()[:200]}
for name, images in sets.items():
    print(f"{name}: {(images.abs() > 0.999).float().mean():.0%} of the values of true pictures are at the wall")
overshot = large.clone()
overshot[:, :, 4:6, 4:6] = 1.5  # 1.6 % of the values
corner = threshold(overshot)[:, :, 0, 0].median()
print(f"white, when a few values are 1.5: {corner:.3f}; 1 / 1.5 = {1 / 1.5:.3f}")
assert abs(corner - 1 / 1.5) < 1e-3
whites = {f"{way}, guidance {scale:g}": tuple(zip(*beyond[scale, way]))[::2]
          for scale, way in ((12.0, "static"), (1.0, "dynamic"), (4.0, "dynamic"), (12.0, "dynamic"))}
for name, (_, white) in whites.items():
    print(f"{name}: paper {white[0]:.2f} at first, {min(white):.2f} in the darkest prediction, {white[-1]:.2f} at last")
plots.lines(whites, x="t (drawing goes from right to left)", y="brightness of the paper")

# %% [markdown]
# The lowest point of a curve tells when the paper was darkest, and its left end what was mended. The cause is in the data: a method comes with the data that it was made for. On drawings on white, do not divide; here even no clipping did as well as static.
#
# ## The large model, before you rent anything
#
# `ascend_t2i_128` is the recipe for the ASCEND paper's one-stage model at 128 pixels: about 590 million weights there, 582 in ours, whose widths are our guess. Does a step fit? What remains through all of training is four numbers a weight, and an average: weight, gradient, two moments of Adam, and the moving average (EMA), 4 bytes each. What a picture adds are the activations kept for the backward pass. The *meta* device counts them without owning the memory.

# %%
from torch.autograd.graph import saved_tensors_hooks

from minidiff.layers import Text

def kept_bytes(network, *inputs):
    """What autograd keeps of a forward pass, weights not counted."""
    own, found = {w.untyped_storage()._cdata for w in network.parameters()}, {}
    def keep(tensor):
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage()  # held, so that no address comes twice
        return tensor
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs)
    return sum(storage.nbytes() for address, storage in found.items() if address not in own)

with torch.device("meta"):
    big = minidiff.create_model("ascend_t2i_128")
    text = Text(torch.zeros(1, 77, big.text_dim), torch.ones(1, 77).bool(), torch.zeros(1, big.pooled_dim))
    inputs = torch.zeros(1, *big.shape), torch.zeros(1), text
weights, forward = sum(w.numel() for w in big.parameters()), minidiff.summary(big, y=text).flops
whole = kept_bytes(big, *inputs)
big.checkpoint = True  # keep the inputs of each unit alone, and compute the rest anew
inputs_only = kept_bytes(big, *inputs)
print(f"{weights:,} weights x 20 bytes = {20 * weights / 1e9:.1f} GB; a picture {whole / 1e9:.2f} GB of activations, "
      f"{inputs_only / 1e9:.2f} GB with checkpointing; {forward / 1e9:.0f} GFLOP forward")

# %% [markdown]
# Compare with a measurement. `python benchmarks/ascend_memory.py` counts the same, and takes **two real steps** of the whole model with one picture, on a CPU. On top of the checkpoints comes one unit, computed anew at a time. A real step holds something more: Python, torch itself, and what lives for a moment only.

# %%
import json

from minidiff.files import data_folder

path, unit, done = data_folder().resolve().parent / "benchmarks" / "ascend_memory.json", 0.64e9, None
if path.exists():  # in a clone
    done = json.loads(path.read_text())
    gb, unit = done["arithmetic_gb"], done["arithmetic_gb"]["largest_unit"] * 1e9
    assert abs(gb["weights"] - 4 * weights / 1e9) < 0.01 and abs(gb["activations"] / (whole / 1e9) - 1) < 0.02
    for way, real in done["measured"].items():
        print(f"{way}: arithmetic {gb['total'][way]} GB, held {real['peak_gb'][-1]} GB after the second step; "
              f"{real['processor_s'][-1]} s a step on one core ({done['machine']})")
each = {"all kept": whole, "checkpointing": inputs_only + unit}  # bytes a picture, at most: the unit grows too
gpus = [1, 8, 16, 32, 64, 128, 256]
curves = {f"{way}": (gpus, [(20 * weights + 1024 / n * size) / 1e9 for n in gpus]) for way, size in each.items()}
curves |= {f"{memory} GB": (gpus, [memory] * len(gpus)) for memory in (40, 80)}
plots.lines(curves, log="xy", x="GPUs", y="GB on each, batch 1024, float32")

# %% [markdown]
# The average (EMA) is in the 20 bytes and not in the benchmark, which counts 16. bf16 at best halves the activations. Where a line lies above that of your card, take more GPUs, or `--accumulate`; [notebook 23](23_your_data_your_gpu.ipynb) divides the weights as well.
#
# ## How long, and how much disk?
#
# A step costs three forward passes a picture, four with checkpointing (both measurements here say less than that). A GPU delivers a share of its peak, the **utilisation**: take 20 to 40 per cent, until you have measured yours. So
#
# $$\text{days} = \frac{\text{steps} \times \text{batch} \times 3 \times \text{FLOPs}}{\text{GPUs} \times \text{peak} \times \text{utilisation} \times 86{,}400}.$$
#
# The recipe's 500,000 steps of 1024 are a guess (as U-ViT's); the paper's are lost.

# %%
from minidiff.recipes import RECIPES

recipe128 = RECIPES["ascend_t2i_128"].training
PEAK = {"A100": 312e12, "H100": 989e12}  # dense bf16, operations a second

def days(gpus, gpu="H100", percent=30, checkpointing=False):
    work = recipe128["steps"] * recipe128["batch_size"] * (4 if checkpointing else 3) * forward
    return work / (gpus * PEAK[gpu] * percent / 100) / 86_400

def plan(gpus=64, gpu="H100", percent=30, checkpointing=False):
    memory = 20 * weights + recipe128["batch_size"] / gpus * each["checkpointing" if checkpointing else "all kept"]
    time = days(gpus, gpu, percent, checkpointing)
    return Markdown(f"{gpus} {gpu} at {percent} %: **{time:.1f} days**, {gpus * time:.0f} GPU-days, "
                    f"{memory / 1e9:.0f} GB each in float32")

many = [8, 16, 32, 64, 128, 256]
display(plots.lines({f"{gpu} at {percent} %": (many, [days(n, gpu, percent) for n in many])
                     for gpu in PEAK for percent in (20, 40)}, log="xy", x="GPUs", y="days"))
widgets.explore(plan, gpus=many, gpu=list(PEAK), percent=[20, 25, 30, 35, 40], checkpointing=False)

# %% [markdown]
# The words must not wait for a second network. T5-XXL's encoder has 4.6 billion weights, eight times the model itself. It is frozen, so its answer to a caption is computed once and kept: 4096 numbers a token, 2 bytes each. The length decides. (What is left of the paper's table gives the text a width of 1024, and we count with that. `minidiff train` makes the network as wide as the embeddings it is given.)

# %%
with torch.device("meta"):
    wide = minidiff.create_model("ascend_t2i_128", text_dim=4096, pooled_dim=4096)
print(f"with text 4096 wide the network has {sum(w.numel() for w in wide.parameters()) / weights - 1:.1%} more weights")
captions_of = {"CC12M": 12e6, "each million of LAION-Aesthetics": 1e6}
rows = ["| captions | tokens kept for each | kB a caption | all |", "|---|---:|---:|---:|"]
for name, number in captions_of.items():
    for tokens in (20, 77, 256):
        size = tokens * 4096 * 2 + 4096 * 2  # and a pooled vector
        rows.append(f"| {name} | {tokens} | {size / 1e3:.0f} | {number * size / 1e12:.2f} TB |")
Markdown("\n".join(rows))

# %% [markdown]
# CC12M says in its name how many pairs it has; of LAION-Aesthetics there are several cuts, so count yours. `cache_shards` keeps the tokens that count and no padding, so the first rows are nearer to the truth for short captions. A picture of 128 pixels as a JPEG takes a few kB. The words are the data set.
#
# ## The first steps
#
# Names that do not fit, shapes, a loss that is no number: much of what can be wrong with a recipe shows in two steps. Whether it learns does not. `--smoke` keeps its schedule, losses, optimiser and checkpoints, and takes a network of milliseconds.
#
# Then at full resolution with an eighth of the width: five levels, 128 pixels, real captions, the recipe's own schedule, prediction and optimiser, with and without checkpointing. The losses must agree.

# %%
import tempfile
import time as clock

from minidiff.cli import main
from minidiff.recipes import process

with tempfile.TemporaryDirectory() as folder:
    main(["train", "ascend_t2i_128", "--smoke", "--out", folder])
how = process("ascend_t2i_128")
kind, given = how.pop("schedule")
options = {key: recipe128[key] for key in ("lr", "weight_decay", "warmup", "decay", "ema", "p_uncond")}
scenes = minidiff.load_dataset("shapes", size=128)
first, batch = {}, 2 if run.tier != "smoke" else 1
for checkpointing in (False, True):
    torch.manual_seed(0)
    net = minidiff.create_model("ascend_t2i_128", channels=32, head_dim=16, **TEXT).to(run.device)
    model = minidiff.Diffusion(net, getattr(minidiff.schedules, kind)(**given), shape=net.shape, **how)
    start = clock.process_time()
    history = minidiff.training.train(model, scenes, steps=min(2, batch), batch_size=batch, encode=encode,
                                      checkpoint_activations=checkpointing, progress=False, **options)
    first[checkpointing] = (history.losses, clock.process_time() - start)
work = 3 * minidiff.summary(model, y=words).flops * batch * len(history.losses) / 1e9
for checkpointing, (losses, seconds) in first.items():
    print(f"checkpointing {checkpointing}: losses {losses.tolist()}, {seconds:.1f} s, {work / seconds:.0f} GFLOP/s")
assert torch.allclose(first[False][0], first[True][0], rtol=1e-3) and abs(first[False][0][0] - 1) < 0.1

# %% [markdown]
# A first loss near 1 is right: a fresh network predicts zeros, and the noise has variance 1. The two real steps of the full 582 million weights are those of the benchmark above. Then the cluster. The captions first, each machine its own part of the shards and its own folder; this is the first one's:
#
# ```python
# from minidiff.datasets import cache_shards, load_dataset
# from minidiff.text import text_encoder
# cache_shards(load_dataset("shards", path="laion/{00000..00999}.tar", size=128), "cached/0", format="jpg",
#              encode_text=text_encoder("t5-xxl", device="cuda", download=True))
# ```
#
# And, on each of eight machines with eight GPUs:
#
# ```bash
# torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint first-machine:29500 \
#     -m minidiff train ascend_t2i_128 --data "cached/*/*.tar" --out /shared/ascend --processes 64 \
#     --checkpoint-activations --workers 8
# ```
#
# Nobody has run this line with this code to its end; what is promised is the arithmetic, and the first steps.
#
# ## What the papers found, what you measured

# %%
def percent(record, key, reader="oracle"):
    return f"{readings(record, key)[reader][0]:.0%}"

findings = [
    ("Imagen: three stages, 64, 256, 1024 pixels, 2 billion, 600 and 400 million weights", "two stages to 32 pixels, "
     + " and ".join(f"{about['model']['parameters'] / 1e6:.1f}" for about in cascade["stages"].values()) + " million"),
    ("ASCEND: one stage at 128 pixels, about 590 million", f"our guess at its widths has {weights / 1e6:.0f} million; "
     f"at 32 pixels and equal compute the oracle gives one stage {percent(single, 'single')}, two "
     f"{percent(cascade, f'cascade-{level}')}; longer, {percent(long['single'], 'single')} and "
     f"{percent(long['cascade'], f'cascade-{level}')}"),
    ("Imagen: augmentation in training uniform in [0, 1]; when drawing 0.1 to 0.3 look best, 0 has the best FID",
     "by level: " + ", ".join(f"{a:g}: {percent(cascade, f'cascade-{a:g}')}" for a in LEVELS)),
    ("Imagen: clipping is essential at large guidance; its own way is dynamic, with p = 0.995",
     "on white paper, at guidance 4, the oracle finds right: " + ", ".join(
         f"{way} {obeyed[4.0, way]:.0%}" for way in ways)),
    ("Frozen T5-XXL embeddings can be computed ahead", "0.2 MB for a caption of 20 tokens"),
]
Markdown("\n".join(["| the papers | here |", "|---|---|", *(f"| {a} | {b} |" for a, b in findings)]))

# %% [markdown]
# ## Exercises
#
# **1. Thresholding in another range.** Values may live in $[0, 1]$. Then "beyond the range" is measured from its middle, in halves of its width. Write dynamic thresholding for any range.

# %% tags=["exercise"] name="threshold_in"
def threshold_in(x0, low, high, p=0.995):
    """x0 (B, C, H, W) of the range [low, high] -> the same, thresholded."""
    ...  # your code

# %% [markdown]
# The check tries three ranges.

# %%
exercises.check_threshold_in(threshold_in)

# %% [markdown]
# **2. Share out the blame.** From two tables of booleans, whether the small picture was right and whether the large one is: the shares of all pictures that are inherited mistakes, broken and repaired.

# %% tags=["exercise"] name="blame"
def blame(small_right, large_right):
    """Two bool tensors (B,) -> (inherited, broken, repaired), floats."""
    ...  # your code

# %% [markdown]
# Then try it on the recorded cascade: `blame(*tables("0.4", "seen", "oracle")[:2])`.

# %%
exercises.check_blame(blame)

# %% [markdown]
# **3. Another size.** You make a convolutional network `width` times as wide and its pictures `side` times as large. Give the new number of weights, bytes of activations a picture, and FLOPs a picture, to leading order. Think of one convolution: each weight joins one channel that comes in with one that goes out, and is used at every place of the map.

# %% tags=["exercise"] name="rescaled"
def rescaled(weights, activations, flops, width, side):
    """-> (weights, activations, flops)."""
    ...  # your code

# %% [markdown]
# `rescaled(weights, whole, forward, 1, 8)` is the same network at 1024 pixels, in one stage. (Its windows allow this rule; attention over the whole map would not.)

# %%
exercises.check_rescaled(rescaled)

# %% [markdown]
# **4. How many GPUs?** The smallest number of GPUs on which a training ends within so many days, if each has this `peak`, in operations a second, and this utilisation, a number from 0 to 1. Turn the formula round. `forward` are the FLOPs of one forward pass for one picture. The batch must divide evenly.

# %% tags=["exercise"] name="gpus_for"
def gpus_for(days, steps, batch, forward, peak, utilisation, checkpointing):
    """-> a whole number of GPUs, a divisor of batch; 0 if not even one GPU a picture suffices."""
    ...  # your code

# %% [markdown]
# With it: `gpus_for(7, 500_000, 1024, forward, 989e12, 0.3, True)`.

# %%
exercises.check_gpus_for(gpus_for)

# %% [markdown]
# ## What you learned
#
# - A small picture is learnt with less compute than a large one. With enough of it both ways may arrive.
# - A cascade is exact in theory. In practice it has a mismatch: the second model is trained on true small pictures and gets drawn ones.
# - Noise on the small picture, of a level that the network is told, can hide how the first stage errs and keep what it decided; whether it paid, our two readers disagree.
# - Two tables of booleans tell whose mistake a picture is, and a control with true inputs tells weakness from mismatch.
# - Dynamic thresholding belongs to data that seldom touch the walls of their range.
# - Memory, time and disk of a large training are four multiplications, to be done before anything else.
#
# ## Where to read on
#
# - Saharia et al., *Photorealistic text-to-image diffusion models with deep language understanding* (Imagen), 2022, arXiv 2205.11487.
# - Ho et al., *Cascaded diffusion models for high fidelity image generation*, 2022, arXiv 2106.15282.
# - The paper of IU-ViT and ASCEND, arXiv 2212.13771: one stage.
# - `minidiff/course/cascade.py`, `minidiff/backbones/efficient_unet.py` and `benchmarks/README.md`.
#
# Next comes notebook 20, *Latent diffusion*: another way to be cheap, with a small picture that is learnt.
