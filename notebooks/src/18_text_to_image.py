# %% [markdown]
# # 18 Text to image from zero
#
# After this notebook you can train a network that draws what a sentence says, and measure, with error bars, whether it does.
#
# Run time: about four minutes on a CPU with two idle cores, more than half of it training, and as long on a T4 or a big GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - compute exactly what a sentence is worth to a denoiser,
# - meet an oracle that reads pictures, and measure its own mistakes,
# - train a small ASCEND on captioned shapes, and test whether it knows whose colour is whose,
# - take apart the failures of the shipped model, above all on words that it never saw together,
# - measure what guidance gives and what it takes, and lead away from a sentence,
# - draw emoji by name, also names that do not exist.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## A sentence goes in
#
# The package ships a small model, `shapes-ascend`, trained on pictures of 16 by 16 pixels, each with a sentence about one or two coloured shapes. Here are three sentences, six pictures of each. Down a column the noise is the same.

# %%
import torch
from minidiff import TextToImage
from minidiff.course.obedience import framed

encode, quick = minidiff.text_encoder("words", device=run.device), run.tier == "smoke"

def draw(prompts, n=1, model=None, **options):  # -> (prompts, n, 3, 16, 16), a seed for each; guidance: see below
    options = dict(steps=3 if quick else 20, seed=range(len(prompts)), guidance=3.0) | options
    return (model or pipe)(prompts, n=n, sampler="dpmpp_2m", output="tensor", progress=False, **options)

pipe = TextToImage.from_pretrained("shapes-ascend", device=run.device)
prompts = ["a large purple circle", "a red square", "a small blue square above a red circle"]
plots.filmstrip(framed(draw(prompts, n=6, seed=0)).transpose(0, 1), rows=prompts)

# %% [markdown]
# That is the whole task: in one stage, words become pixels. Does the network obey? And what of words that it has never heard?
#
# ## What a sentence is worth
#
# A denoiser without words answers a noisy picture $x_t=\alpha x_0+\sigma\varepsilon$ with the mean of all clean pictures that could be behind it, $\mathbb E[x_0\mid x_t]$ ([notebook 02](02_from_likelihood_to_a_squared_error.ipynb)). Now each picture has a sentence $c$. Give the network both, and train as before:
#
# $$\min_\theta\; \mathbb E_{(x_0, c),\,t,\,\varepsilon}\;\big\|\,x_0 - \hat x_\theta(x_t, t, c)\,\big\|^2 .$$
#
# The best answer to a squared error is a mean, here over what fits *both*: $\mathbb E[x_0\mid x_t, c]$. (Predicting $v$ changes the weight of the noise levels, not this.) For a finite set of pictures $x^{(i)}$ with sentences $c_i$, Bayes' rule gives it exactly. The noise weighs the pictures, and $\mathbf 1[\cdot]$, one or zero, strikes out those that the sentence does not fit:
#
# $$\mathbb E[x_0\mid x_t, c] = \sum_i w_i\,x^{(i)}, \qquad w_i \propto \mathbf 1[c_i \text{ fits } c]\;\exp\Big(-\frac{\|x_t-\alpha x^{(i)}\|^2}{2\sigma^2}\Big).$$
#
# Build it from 3,000 scenes with one object, and tell it ever more about one of them.

# %%
from minidiff.datasets.shapes import SHAPES

count = 400 if quick else 3000
singles = minidiff.load_dataset("shapes", scenes="one")
clean, labels, captions = singles.batch(range(count))
things = [scene.things[0] for scene in singles.attributes(range(count))]
kinds = {"colour": labels // len(SHAPES), "shape": labels % len(SHAPES)}
kinds["size"] = torch.tensor([thing.size == "large" for thing in things]).long()
schedule, flat = minidiff.schedules.cosine(), clean.flatten(1)  # (N, 768)

def likely(x_t, t, flat=flat):  # (B, N): how likely it is, without words, that a clean picture is behind x_t
    alpha, sigma = schedule(t)
    return (-torch.cdist(x_t.flatten(1), alpha * flat).square() / (2 * sigma**2)).softmax(1)

def denoised(x_t, t, fits, flat=flat):  # E[x0 | x_t, c]; fits (N,) bool: which pictures the sentence c fits
    w = likely(x_t, t, flat) * fits
    return (w @ flat / w.sum(1, keepdim=True)).view(x_t.shape)

one, times, frames, eps = 5, (0.98, 0.93, 0.86, 0.75, 0.5), [], torch.randn(1, 3, 16, 16)
fits = torch.stack([torch.ones(count), *(kind == kind[one] for kind in kinds.values())]).cumprod(0).bool()  # (4, N)
for t in times:
    x_t = schedule(t)[0] * clean[one:one + 1] + schedule(t)[1] * eps
    frames.append(framed(torch.cat([x_t, *(denoised(x_t, t, told) for told in fits), clean[one:one + 1]])))
plots.filmstrip(frames, times, rows=["noisy", "no words", *(f"+ {name}" for name in kinds), captions[one]], scale=6)

# %% [markdown]
# Read from left to right, from much noise to little. At first the words decide alone: without them the best guess is a grey cloud, with them a cloud in the right colour. In the end all four guesses agree, for the pixels say it themselves. **Words matter at high noise.**
#
# How much is each worth? Write $\mu$ for the mean without words and $\mu_c$ for that with them. By the law of total variance the error that words save is
#
# $$\mathbb E\|x_0-\mu\|^2 - \mathbb E\|x_0-\mu_c\|^2 \;=\; \mathbb E\,\|\mu_c-\mu\|^2 .$$
#
# So the value of a word is the squared distance between the denoiser that heard it and the one that did not. Compute both sides, and compare the means with the package's `FiniteData`, which does the same for labels.

# %%
from minidiff.oracles import FiniteData

def saved(x_t, t, kind, flat=flat):
    """Both sides of the formula for a word that tells `kind` (N,), given x_t: two tensors (B,)."""
    w = likely(x_t, t, flat)
    mu, left, right = w @ flat, 0.0, 0.0
    left = (w * torch.cdist(mu, flat).square()).sum(1)
    for value in kind.unique():
        own = w * (kind == value)
        mu_c = own @ flat / own.sum(1, keepdim=True).clamp(min=1e-30)
        left = left - (own * torch.cdist(mu_c, flat).square()).sum(1)
        right = right + own.sum(1) * (mu_c - mu).square().sum(1)
    return left, right

some, levels, worth = clean[:8 if quick else 24], (0.02, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98), {}
for name, kind in (kinds | {"the whole sentence": labels * 2 + kinds["size"]}).items():
    worth[name] = (levels, [])
    for t in levels:
        x_t = schedule(t)[0] * some + schedule(t)[1] * torch.randn(some.shape)
        left, right = saved(x_t, t, kind)
        assert torch.allclose(left, right, rtol=1e-2, atol=0.02)
        worth[name][1].append(right.mean().item())
package = FiniteData(clean, kinds["colour"]).denoise(x_t[one:one + 1], t, schedule, kinds["colour"][one:one + 1]).x0
assert torch.allclose(denoised(x_t[one:one + 1], t, kinds["colour"] == kinds["colour"][one]), package, atol=2e-3)
plots.lines(worth, x="t (0 clean, 1 noise)", y="squared error saved")

# %% [markdown]
# This is what a *perfect* listener gains from these pictures, and it is unequal: the colour of an object fills many pixels, its shape and size change fewer. A squared error pays best for colours.
#
# The same difference has another use. If in training one caption in ten is replaced by the empty one (`p_uncond=0.1`), a single network learns $\mu_c$ and $\mu$. When sampling, $\mu_c-\mu$ can then be exaggerated, $\mu + s\,(\mu_c-\mu)$ with $s>1$: classifier-free guidance ([notebook 07](07_guidance.ipynb) has its theory).
#
# ## Captions, and what is kept secret
#
# The scenes have one or two objects of six colours, four shapes, two sizes, and four relations. A caption leaves out a size now and then. And some **pairs of words never meet** in training, though each word is common. For relations what counts is the picture: "a circle right of a cross" also shows a cross left of something.

# %%
from minidiff.datasets.shapes import HELD_OUT
from minidiff.metrics import held_out_groups

def shapes(split, **how):
    return minidiff.load_dataset("shapes", size=16, held_out="default", split=split, num=10**6, **how)

data = shapes("train", unsaid=0.3)
images, _, captions = data.batch(range(2000))
assert not held_out_groups(captions)["held out"].any()
everything = minidiff.load_dataset("shapes", size=16).batch(range(2000))[2]
share = held_out_groups(everything)["held out"].double().mean()
print("never together:", ", ".join(" ".join(pair) for pair in HELD_OUT), f"\nthis keeps back {share:.0%} of all scenes")
text = encode([captions[0], "a blob", ""])
print("tokens", tuple(text.tokens.shape), "words that count:", text.mask.sum(1).tolist(),
      "not known:", encode.tokenizer.unknown("a blob"))
plots.grid(framed(images[:12]), columns=6, titles=captions[:12])

# %% [markdown]
# The last lines are the **text encoder**, a small frozen transformer that turns a sentence into one vector a word ([notebook 17](17_words.ipynb) opens it). The paper of ASCEND does the same with T5-XXL. The empty caption is a text without any token: that is the "no words" of guidance.
#
# ## An oracle
#
# Most text-to-image models are judged by people, or by a network with mistakes of its own. Here a program reads the picture back. It finds connected patches of ink, paints each again as every shape in several sizes, and takes what leaves the least difference. Where even that is poor, it refuses. Try it on pictures damaged on purpose. Below each stands what it read, in green where that is what was asked.

# %%
from minidiff.course.obedience import answers, miss, shares
from minidiff.datasets.shapes import RELATIONS, parse, read
from minidiff.metrics import Share, oracle_accuracy
from minidiff.metrics.oracle import MEASURED, blurred, damage_table

fresh, _, asked = shapes("test").batch(range(5000, 5012))
noise = torch.randn(fresh.shape)
damaged = [fresh[0], (fresh + 0.08 * noise)[1], (fresh + 0.15 * noise)[1], blurred(fresh, 0.5)[2],
           blurred(fresh, 1.3)[2], fresh[4].roll(8, 2)]
display(answers(torch.stack(damaged), [asked[i] for i in (0, 1, 1, 2, 2, 4)]))

table = damage_table(16, num=60 if quick else 200)
assert table["noise", 0.0][0] == 1  # all of the clean renders
for (kind, amount), (right, wrong, refused) in table.items():
    usual = Share(MEASURED[16][kind, amount][0], 1000)
    assert right.interval[0] - 0.05 <= usual <= right.interval[1] + 0.05
    print(f"{kind:>5} {amount:<5g} right {float(right):4.0%}   wrong {float(wrong):4.0%}   "
          f"refused {float(refused):4.0%}   ({float(usual):.0%} right of 1,000)")

# %% [markdown]
# On clean renders the oracle is always right. On worse ones it falls silent: most of what is not right is *refused*. So a young network whose pictures are blurred scores next to nothing, however well it listens.
#
# A share is an estimate. If each of $n$ pictures is right with probability $p$, the share has the **standard error** $\sqrt{p(1-p)/n}$: 1.9 % for 256 pictures and $p=0.9$. At 0 and 1 that formula claims certainty; the 95 % intervals in the figures are Wilson's, which do not. A `Share` is a float that knows its `count` and its `interval`. To compare two of them, divide their difference by the standard error that it would have if luck were all. Luck passes two such errors once in twenty times, three almost never.
#
# For the time before the oracle reads anything, make a milder judge of pictures of one object: which of 16,000 clean renders is nearest, pixel by pixel?

# %%
def apart(a, b):
    """How many standard errors the Share a lies above the Share b."""
    p = (a * a.count + b * b.count + 1) / (a.count + b.count + 2)  # of both; one more right and wrong, so never 0 or 1
    return (a - b) / (p * (1 - p) * (1 / a.count + 1 / b.count)) ** 0.5

def verdict(first, a, second, b):
    far = apart(a, b)
    word = "cannot be told from" if abs(far) < 2 else "is above" if far > 0 else "is below"
    return f"{first} ({float(a):.1%} of {a.count}) {word} {second} ({float(b):.1%} of {b.count}): {far:+.1f} errors"

print(verdict("55 heads", Share(0.55, 100), "a fair coin", Share(0.5, 100)))
print(verdict("2,200 heads", Share(0.55, 4000), "a fair coin", Share(0.5, 4000)))
bank = torch.cat([singles.batch(range(k, k + 2000))[0] for k in range(0, 2000 if quick else 16_000, 2000)])
known = [scene.things[0] for scene in singles.attributes(range(len(bank)))]

def nearest(pictures):  # what the nearest render shows, for each picture
    return [known[k] for k in torch.cdist(pictures.cpu().flatten(1), bank.flatten(1)).argmin(1)]

ones = minidiff.load_dataset("shapes", scenes="one", split="test", held_out="default", num=10**6)
renders, _, single = ones.batch(range(12 if quick else 48))
pairs = list(zip(nearest(renders), [parse(caption).things[0] for caption in single]))
for name, chance in {"colour": 1 / 6, "shape": 1 / 4, "size": 1 / 2}.items():
    found = sum(getattr(a, name) == getattr(b, name) for a, b in pairs)
    print(f"milder judge, {name} of clean renders: {found} of {len(pairs)} right (by chance {len(pairs) * chance:.0f})")

# %% [markdown]
# ## Whose colour is whose?
#
# "A red circle left of a blue square", "a blue circle left of a red square": the same words. What is it worth to be told which of the two it is? Take many renders of a caption, as many of the caption with its colours exchanged, and call `saved` again. Dividing by $\sigma^2$ and the number of values, 768, gives the units of the training loss, for the error of $v$ is that of $x_0$ over $\sigma$.

# %%
import numpy as np
from minidiff.course.obedience import changed, renders

def two(split, number, **how):  # pictures of two things of different colours, and their captions
    pictures, _, told = shapes(split, scenes="two", **how).batch(range(number))
    fit = [k for k, caption in enumerate(told) if changed(caption, "order") != caption]
    return pictures[fit], [told[k] for k in fit]

half, gain, flags, captions = 200 if quick else 1500, np.zeros(len(levels)), [], two("test", 4 if quick else 8)[1]
for caption in captions:
    both = torch.cat([renders(told, half) for told in (caption, changed(caption, "order"))]).flatten(1)
    own = torch.arange(2 * half) < half  # those of the right caption
    for k, t in enumerate(levels):
        x_t = schedule(t)[0] * both[:16] + schedule(t)[1] * torch.randn(16, 768)
        gain[k] += saved(x_t, t, own, both)[1].mean().item() / len(captions)
        if t in (0.8, 0.9):
            right, wrong = ((denoised(x_t, t, side, both) - both[:16]).square().sum(1) for side in (own, ~own))
            flags += (right < wrong).tolist()
print(f"the exact denoiser is less wrong with the right caption than with the other in {np.mean(flags):.0%} of cases")
worth = {"colour of one thing": worth["colour"], "whose colour": (levels, gain)}
for name, (_, each) in worth.items():
    in_loss = [value / (768 * schedule(t)[1] ** 2) for t, value in zip(levels, each)]
    paid = [np.interp(pipe.diffusion.sample_times(20_000, times=how), levels, in_loss) for how in (None, "late")]
    print(f"{name}: {1e3 * paid[0].mean():.1f} thousandths of loss, at late times {1e3 * paid[1].mean():.1f}")
plots.lines(worth, x="t (0 clean, 1 noise)", y="squared error saved")

# %% [markdown]
# The sum is not small, but it is paid at high noise alone: once you see where the red patch is, no sentence is needed. And no step leads there. If red is named first, it stands left with "left of" and right with "right of": an exclusive or of order and relation, where each alone tells nothing, so learning one of them is not rewarded. Nor do windows of attention tell a network where in the picture it is. In trials for this course no small network learned it from such captions within 10,000 steps.
#
# So the recipe of `shapes-ascend` begins with an easier lesson: captions that name the left or upper thing first (`turned=1.0`), where order alone decides. Two more input channels hold the row and column of each pixel (`coordinates=True`), and most training is at high noise, at late times (`times="late"`). In the second lesson (`turned=0.6`) one in five captions of two things has the other order: exceptions to a known rule.
#
# ## Train it
#
# Your network gets the first lesson. It is a small **ASCEND** ([notebook 15](15_ascend.ipynb)): a Swin encoder, a decoder of convolutions. At 16, 8 and 4 pixels the units of the encoder end in cross-attention, where every place in the picture asks the words, which an MLP has prepared (`text_mlp`). The decoder hears none. The vector for the whole sentence that the paper adds is left out: it only whispers whose colour is whose (notebook 17).
#
# `encode=` turns the captions of a batch into text, `p_uncond` empties one in ten. Now and then 48 captions are drawn from the averaged weights, and go to both judges.

# %%
from minidiff.training import train

def new():  # an untrained ASCEND that hears words
    torch.manual_seed(run.seed)
    network = minidiff.create_model("ascend_tiny", channels=32, channel_mult=(1, 2, 3), head_dim=16, text_mlp=True,
                                    attn_resolutions=(16, 8, 4), text_dim=encode.dim, coordinates=True)
    return minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, 16, 16)).to(run.device)

def evaluate(averaged):  # shares right; kept in `heard`
    drawn = draw(single, model=TextToImage(averaged, encode), steps=2 if quick else 10)[:, 0]
    pairs = list(zip(nearest(drawn), [parse(caption).things[0] for caption in single]))
    right = {name: [getattr(a, name) == getattr(b, name) for a, b in pairs] for name in ("colour", "shape", "size")}
    heard.append({name: Share(sum(flags) / len(flags), len(flags)) for name, flags in right.items()})
    heard[-1]["oracle: all"] = oracle_accuracy(drawn, single)["all"]
    return {name: float(share) for name, share in heard[-1].items()}

heard, model, probe, batch = [], new(), new(), 8 if quick else 64 if run.device.type == "cpu" else 256
options = dict(batch_size=batch, lr=1e-3, ema=0.99, p_uncond=0.1, encode=encode, times="late", seed=run.seed)
lesson = shapes("train", unsaid=0.3, turned=1.0)
steps = budget("training ASCEND", smoke=4, cpu=700, gpu=6000, big=12_000,
               per_step=lambda: train(probe, lesson, **options | dict(steps=1, progress=False)))
every = max(2, steps // 7)
history = train(model, lesson, steps=steps, warmup=steps // 10, evaluate=evaluate, evaluate_every=every, **options)
size, end = sum(w.numel() for w in model.parameters()), history.losses[-max(1, steps // 20):].mean()
print(f"{size:,} weights; mean loss of the last steps {end:.3f}")

# %% [markdown]
# In which order does it learn? Then your own pictures: look at them before you read the numbers. Is there ink where it should be, in the right colour? Are there two things where two were asked for?

# %%
chances = {"colour": 1 / 6, "shape": 1 / 4, "size": 1 / 2, "oracle: all": 0.0}
at = [min(every * (k + 1), steps) for k in range(len(heard))]
curves = {name: ([0, *at], [chances[name], *(row[name] for row in heard)]) for name in heard[0]}
figure = plots.lines(curves, x="step", y="share right, one object")
figure.axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
display(figure)
for name, chance in chances.items():
    sure = [step for step, row in zip(at, heard) if row[name].interval[0] > max(chance, 0.02)]
    print(f"{name}: surely above chance from step {sure[0]} on" if sure else f"{name}: never surely above chance")
mine = TextToImage(history.ema, encode)
half_asked = shapes("test", turned=1.0).batch(range(6000, 6012 if quick else 6064))[2]
half_way = draw(half_asked, model=mine)[:, 0]
half_read = oracle_accuracy(half_way, half_asked)
print("the oracle, of captions with one or two objects:",
      ", ".join(f"{name} {float(share):.0%}" for name, share in half_read.items()))
answers(half_way[:12], half_asked[:12])

# %% [markdown]
# The first point of each curve is chance, not measured. A share of 48 has a standard error of up to 7 %, so a curve may fall back.
#
# ## What has it heard?
#
# You can also ask without sampling. Take true pairs of pictures and captions with two things, change one word ("left of" to "right of"), or exchange the two colours, and see by how much the loss grows: the network's version of the exact curves. Pictures and noise are the same for both networks.

# %%
@torch.no_grad()
def losses(model, pictures, captions, at=(0.5, 0.7, 0.85, 0.95)):  # (B,), over noise levels
    eps, y = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1)), encode(captions)
    ts = [torch.full((len(pictures),), t, device=run.device) for t in at]
    given = dict(y=y.to(run.device), eps=eps.to(run.device))
    return torch.stack([model.loss(pictures.to(run.device), t=t, **given) for t in ts]).mean(0).cpu()

nets = {"yours": history.ema, "shipped": pipe.diffusion}
true, told = two("test", 12 if quick else 72, turned=1.0)
names, grown, errors = [], [], []
for who, net in nets.items():
    right = losses(net, true, told)
    for name in ("colour", "shape", "size", "relation", "order"):
        gap = losses(net, true, [changed(caption, name) for caption in told]) - right
        names.append(f"{who}: {name.replace('order', 'whose colour')}")
        grown.append(1e3 * gap.mean().item())
        errors.append(1e3 * (gap.std() / len(gap) ** 0.5).item())
    order = sorted(range(-5, 0), key=lambda k: -grown[k])
    print(f"{who}: loss {right.mean():.4f}, grows most for", " > ".join(names[k].split(": ")[1] for k in order))
plots.bars(names, grown, errors, x="growth of the loss when the caption is changed, in thousandths")

# %% [markdown]
# Is that enough to tell right from wrong? Ask picture by picture, at high noise: is the loss smaller with the right caption than with exchanged colours? Ask three times: with captions that name the left or upper thing first, with the same pictures told from the *other* side, and with words that never met in training.

# %%
from minidiff.datasets.shapes import Scene, describe

def around(caption):  # the same scene, told from the other side
    scene = parse(caption)
    return describe(Scene(scene.things[::-1], RELATIONS[scene.relation]))

def tells(net, pictures, captions):  # Share of pictures whose loss is smaller than with exchanged colours
    other = [changed(caption, "order") for caption in captions]
    gap = losses(net, pictures, other, (0.8, 0.92)) - losses(net, pictures, captions, (0.8, 0.92))
    return Share((gap > 0).double().mean().item(), len(gap))

never, binds = two("held_out", 12 if quick else 160, turned=1.0), {}
seen, told = two("test", 12 if quick else 200, turned=1.0)
fair = (~held_out_groups([changed(caption, "order") for caption in told])["held out"]).nonzero().flatten().tolist()
seen, told = seen[fair], [told[k] for k in fair]  # the exchanged caption, too, is of a kind that training showed
for who, net in nets.items():
    binds[who] = {"left or upper first": tells(net, seen, told),
                  "right or lower first": tells(net, seen, [around(caption) for caption in told]),
                  "words never together": tells(net, *never)}
    for name, share in binds[who].items():
        print(f"{who}, {name}: {share}, {apart(share, Share(0.5, 10**6)):+.1f} standard errors from a guess")
shares(binds, marks=dict.fromkeys(binds["yours"], 0.5))

# %% [markdown]
# The dashed line is a guess. A bar at the line means the right colours, dealt out by chance. Yours has only begun. A bar well *below* the line would be no accident: that network gives the first colour to the left, whatever the relation says. So a long first lesson may end, for its captions need order and no more; that is why a second one follows. The training loss alone shows none of this. **The loss is no measure of obedience.**
#
# ## The shipped model
#
# `shapes-ascend` is what becomes of such a network in two hours of one core (`python tools/train_weights.py shapes-ascend --start data/weights/shapes-ascend` goes on from there). Its figures, from 1,000 captions of each kind, stand on the **card** that comes with the weights. Do you believe a card? Take fewer, other captions and other noise, and see whether the two agree within the error.

# %%
from minidiff.checkpoints import read_card

few = 8 if quick else 256
card = read_card("shapes-ascend")
oracle = card["oracle"]
asking = {key: oracle[key] for key in ("steps", "guidance")} if not quick else dict(steps=2)
fresh = {split: shapes(split).batch(range(50_000, 50_000 + few))[2] for split in ("test", "held_out")}
drawn = {split: draw(captions, **asking)[:, 0] for split, captions in fresh.items()}
live = {split: oracle_accuracy(drawn[split], fresh[split]) for split in fresh}
print(f"{sum(w.numel() for w in pipe.diffusion.parameters()):,} weights, {card['steps']} steps of training")
for split in fresh:
    print(f"{split}, all right: live {live[split]['all']}")
    counts = {name: oracle["prompts"] // (2 if name == "relation" else 1) for name in oracle[split]}
    far = {name: apart(live[split][name], Share(oracle[split][name], counts[name])) for name in counts}
    worst = max(far, key=lambda name: abs(far[name]))
    print(f"  card, of {oracle['prompts']}:", ", ".join(f"{name} {value:.1%}" for name, value in oracle[split].items()))
    print(f"  farthest from it is your {worst}: {far[worst]:+.1f} standard errors")
shares({"shipped": live["test"], "yours, half-way": half_read})

# %% [markdown]
# The farthest of seven shares is often near two standard errors even if all is well; beyond three you should ask. An unreadable picture is wrong in everything.
#
# ## How it fails
#
# Sort the failures. "Exchanged" means that the right words went to the wrong things: two colours, two shapes, or two places, whatever the sizes; "several", that more than one kind of thing is wrong. Above each picture stands what was asked, below it what the oracle read.

# %%
from collections import Counter

wrong = []
for split in fresh:
    for picture, caption, scene in zip(drawn[split], fresh[split], read(drawn[split])):
        if miss(caption, scene):
            wrong.append((picture, caption, miss(caption, scene)))
ways = Counter(way for _, _, way in wrong)
print(f"{len(wrong)} of {2 * few} pictures are wrong:", ", ".join(f"{way} {n}" for way, n in ways.most_common()))
print("the right words at the wrong things:", sum(number for way, number in ways.items() if "exchanged" in way))
wrong.sort(key=lambda row: -ways[row[2]])
some = wrong[::max(1, len(wrong) // 12)][:12]
answers(torch.stack([row[0] for row in some]), [row[1] for row in some]) if some else None

# %% [markdown]
# ## Words that never met
#
# Half of these prompts hold a pair that training never showed, such as a red triangle. Did the network learn "red" and "triangle", or every kind of thing by heart? Held-out captions have two objects more often, because relations need two, and two are harder than one. So compare like with like.

# %%
groups = {}
for split, who in (("test", "seen"), ("held_out", "never seen")):
    number = [len(parse(caption).things) for caption in fresh[split]]
    parts = [f"{who}, {'one thing' if n == 1 else 'two things'}" for n in number]
    groups |= oracle_accuracy(drawn[split], fresh[split], groups=parts).groups
    print(f"{who}: {number.count(2) / few:.0%} have two objects; all right {live[split]['all']}")
for n in ("one thing", "two things"):
    if {f"seen, {n}", f"never seen, {n}"} <= set(groups):
        seen, never = groups[f"seen, {n}"]["all"], groups[f"never seen, {n}"]["all"]
        print(verdict(f"never seen, {n}", never, f"seen, {n}", seen))
order = sorted(groups, key=lambda name: (name.split(", ")[1], "never" in name))
shares({name: groups[name] for name in order}, names=["colour", "shape", "relation", "all"])

# %% [markdown]
# The gap between bars of the same number of things is the price of novelty. Which pairs fail, and what stands in their place? For colours the next cell counts what was read in pictures of one thing.

# %%
shown, seen = held_out_groups(fresh["held_out"]), read(drawn["held_out"])
by_pair = {" ".join(pair): shown[" ".join(pair)] for pair in HELD_OUT}
by_pair = oracle_accuracy(drawn["held_out"], fresh["held_out"], groups=by_pair).groups
order = sorted(by_pair, key=lambda name: by_pair[name]["all"])
for name in order:
    read_there = Counter()
    for caption, scene in zip(fresh["held_out"], seen):
        asked = parse(caption).things
        if len(asked) == 1 and name == f"{asked[0].colour} {asked[0].shape}":
            things = scene.things if scene else ()
            read_there[f"{things[0].colour} {things[0].shape}" if len(things) == 1 else "nothing sure"] += 1
    words = ", ".join(f"{what} {count}" for what, count in read_there.most_common(4))
    print(f"{name:>15}: all right {by_pair[name]['all']}" + f"; read: {words}" * bool(words))
display(shares({"all right": {name: by_pair[name]["all"] for name in order}}))
some = [int(place) for name in order for place in shown[name].nonzero().flatten()[:2]]
answers(drawn["held_out"][some], [fresh["held_out"][k] for k in some])

# %% [markdown]
# The pictures are the first two captions of each pair, hardest pairs first. A single thing in a new colour is no problem. What fails most is a triangle on top. Training showed none there, and the network often puts another shape in its place: see the failures above. A habit of the data has leaked into the words. Novelty alone is no reason: a cross that stands left, just as new, is nearly always right. (A caption may hold two pairs.)
#
# ## Three networks, one task
#
# Does it have to be ASCEND? Three small networks get the first lesson with one recipe and number of steps: ASCEND, IU-ViT ([notebook 11](11_iu_vit.ipynb)), and a U-Net with attention. Equal steps are not equal work, so two panels have the work on their axis. The runs are recorded, for each takes longer than this notebook may. "Worth" is by how much the loss grows without any words, and with exchanged colours, in thousandths. (A wrong caption misleads, none is only silent.)

# %%
from IPython.display import Markdown
from minidiff.course.obedience import compared, during, work
from minidiff.course.recorded import recorded

runs = recorded("backbones", "cpu")
final = {name: Share(record["accuracy"]["seen"]["all"], record["prompts"]) for name, record in runs.items()}
best_net, *others = sorted(runs, key=lambda name: -final[name])
for other in others:
    print(verdict(best_net, final[best_net], other, final[other]))
least = min(work(record, record["training"]["steps"]) for record in runs.values())  # what the cheapest run spent
for name, record in runs.items():
    spent = [work(record, step) for step in record["during"]["step"]]
    print(f"{name}: right in all {np.interp(least, spent, record['during']['all']):.0%} after the same work")
some = [k for k in range(len(runs[best_net]["captions"])) if k % 5 == 0][:6]
frames = torch.stack([record["samples"][some] for record in runs.values()], dim=1)
display(during(runs), Markdown(compared(runs)))
plots.filmstrip(framed(frames), [runs[best_net]["captions"][k] for k in some], rows=list(runs))

# %% [markdown]
# The oldest network wins, and not only because its steps do more work: after the same work it was right far more often, and its loss grows most when colours are exchanged. Its attention sees the whole map, and its decoder hears the words, too; ASCEND's windows see pieces, and its decoder is deaf. Whether that is the reason, nothing here has tested. One run each, networks of different size, 16 pixels: no verdict about 590 million weights.
#
# ## How loud should the words be?
#
# Guidance is there to make a model obey. Does it, and what does it cost? Ask the shipped model at several scales, always with the same captions and noise: how many are right in all, and how **varied** are the answers to one caption? Variety is the mean distance between two pictures of a caption, and 1 means as in real scenes.

# %%
from minidiff.course.obedience import trade_off

scales, cheap = ((1.0, 3.0), dict(steps=2)) if quick else ((0.0, 1.0, 2.0, 3.0, 5.0, 8.0), dict(steps=15))
asked = shapes("test").batch(range(90_000, 90_000 + (8 if quick else 96)))[2]
repeated = ["a large purple circle", "a small black cross", "a large blue triangle", "a small red square"]

def spread(groups):  # mean distance between two pictures of a group
    return sum(torch.pdist(group.flatten(1)).mean().item() for group in groups) / len(groups)

real = spread([bank[[thing == parse(caption).things[0] for thing in known]] for caption in repeated])
obeyed, row, varied = {}, [], {}
for scale in scales:
    answer = draw(asked, guidance=scale, **cheap)[:, 0]
    obeyed[scale] = torch.tensor([not miss(caption, scene) for caption, scene in zip(asked, read(answer))])
    varied[scale] = spread(draw(repeated, n=8, guidance=scale, seed=5, **cheap)) / real
    row.append(answer[:6])
right = {scale: Share(flags.double().mean().item(), len(asked)) for scale, flags in obeyed.items()}
best = max(right, key=right.get)
gap = obeyed[best].double() - obeyed[1.0].double()
far = gap.mean() / (gap.std() / len(gap) ** 0.5).clamp(min=1e-9)
print(f"most obedient at {best:g}: {right[best]}; above scale 1 by {gap.mean():.1%}, {far:.1f} standard errors")
display(trade_off(right, varied))
plots.filmstrip(framed(torch.stack(row, dim=1)), asked[:6], rows=[f"scale {scale:g}" for scale in scales])

# %% [markdown]
# Captions and noise are the same at every scale, so the comparison is **paired**: what counts is the error of the mean *difference*, usually a smaller one than that of two separate shares, since hard captions are hard at every scale. Here little was left to gain; at 8 fewer are right. (The best of six scales is often lucky, and 100 % of 96 is no certainty.)
#
# ## Away from a sentence, and one word changed
#
# In the guidance formula $\mu$ is the answer to no words. Nothing forbids other words in its place, a **negative prompt**:
#
# $$\hat\mu = \mu_{-} + s\,(\mu_c - \mu_{-}).$$
#
# With shapes the effect can be counted. "A red circle" leaves the size open; lead away from one size, and count. In the pictures below a word or two of the prompt itself change, and the noise stays.

# %%
sized = {}
for negative in (None, "a small red circle", "a large red circle"):
    circles = draw(["a red circle"] * (8 if quick else 64), negative=negative, **cheap)[:, 0]
    sizes = [scene.things[0].size for scene in read(circles) if scene]
    sized[negative] = Share(sizes.count("large") / max(len(sizes), 1), max(len(sizes), 1))
    print(f"negative prompt {negative or 'none'}: {len(sizes)} of {len(circles)} are read, large {sized[negative]}")
print(verdict("away from small", sized["a small red circle"], "away from large", sized["a large red circle"]))

first = "a small purple circle left of a large green circle"
variants = [first, first.replace("purple", "black"), first.replace("green circle", "green triangle"),
            first.replace("small", "large", 1), first.replace("left of", "above")]
same = draw(variants, n=6, seed=0)
for caption, pictures in zip(variants[1:], same[1:]):
    moved = (pictures - same[0]).abs().amax(1) > 0.2
    now = [word for word in dict.fromkeys(caption.split()) if caption.split().count(word) > first.split().count(word)]
    print(f"now {' '.join(now)!r}: {moved.double().mean():.0%} of the pixels change")
plots.filmstrip(framed(same).transpose(0, 1), rows=variants)

# %% [markdown]
# The noise suggests where things stand, the words say what they are. Where only a colour changes, the places can stay; a relation must move them. (Unprompted, large is already favoured.)
#
# ## Emoji by name
#
# A million captions of shapes follow one grammar. Now the opposite: some 1,900 emoji, each with a name and in two styles, one in ten names held out. The network is again an ASCEND, `emoji-t2i`, and the encoder knows thousands of words. There is no oracle for a smiling cat, but a judge trained on the same split, `emoji-clip`, which matches pictures and names. Ask it for the right name among 32. How it does on real pictures says how far to trust it.

# %%
emoji = {split: minidiff.load_dataset("emoji", size=16, split=split) for split in ("train", "test")}
painter, clip = TextToImage.from_pretrained("emoji-t2i", device=run.device), minidiff.load("emoji-clip", run.device)

@torch.no_grad()
def recognised(pictures, names):  # Share whose own name fits best of 32 (8 in smoke tier), at hardly any noise, 0.05
    blocks = [range(k, k + min(32, len(names))) for k in range(0, len(names) - 7, 32)]
    right = [clip.similarity(pictures[own].to(run.device), 0.05, [names[k] for k in own]).argmax(1).cpu()
             == torch.arange(len(own)) for own in blocks]
    return {"own name": Share(torch.cat(right).double().mean().item(), sum(map(len, right)))}

names, sheets, judged = {}, {}, {}
for split, who in (("train", "seen names"), ("test", "held-out names")):
    every = sorted({name for name in emoji[split].captions if not clip.tokenizer.unknown(name)})
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(2))[:8 if quick else 96]
    names[who] = [every[k] for k in order]
    places = [emoji[split].captions.index(name) for name in names[who]]
    sheets[who] = torch.cat([emoji[split].images()[places][:, None], draw(names[who], n=2, model=painter)], dim=1)
    for k, kind in enumerate(("real", "drawn")):
        judged[f"{kind}, {who}"] = recognised(sheets[who][:, k], names[who])
display(shares(judged, marks={"own name": 1 / 32}))
frames, heads = torch.cat([sheet[:5] for sheet in sheets.values()]), sum([own[:5] for own in names.values()], [])
plots.filmstrip(frames, heads, rows=["real", "drawn", "drawn"])

# %% [markdown]
# On the left are names from the training, on the right held-out ones; the dashed line is chance. Compare "drawn" with "real" of the same kind: on held-out names the judge is weak even on real pictures, for it has not met them either. If drawings please it more than those, that proves nothing: judge and painter learned from the same pictures, and share their prejudices.
#
# Is a seen name drawn, or remembered? Look for the nearest training picture. Then ask for sentences: known names, two in one, and words that the encoder does not know.

# %%
def looked_up(pictures):  # (name, picture) of the nearest training picture, for each
    places = torch.cdist(pictures.flatten(1), emoji["train"].images().flatten(1)).argmin(1)
    return [emoji["train"].captions[k] for k in places], emoji["train"].images()[places]

free = ["a cat with a birthday cake", "birthday cake", "cat face", "a red heart on fire", "a quokka", "an axolotl"]
print("words that the encoder does not know:", sum([encode.tokenizer.unknown(text) for text in free], []))
own = [name == near for name, near in zip(names["seen names"], looked_up(sheets["seen names"][:, 1])[0])]
print(f"seen names whose nearest training picture is their own: {sum(own)} of {len(own)}")
loose = draw(free, n=4, model=painter, seed=3)
near_names, near = looked_up(loose[:, 0])
print("nearest to the first picture of each:", dict(zip(free, near_names)))
display(plots.filmstrip(torch.cat([loose, near[:, None]], dim=1).transpose(0, 1), [*" " * 4, "nearest"], rows=free))
quokka, zyzzyva = draw(["quokka", "zyzzyva"], n=2, model=painter, seed=3)
print("'quokka' and 'zyzzyva' differ at most by", f"{(quokka - zyzzyva).abs().max():.0e}")

# %% [markdown]
# Three in four lie nearest their own picture: much of it is memory. What this model knows of cakes it knows from a handful of pictures, each seen many times, and none showed two emoji at once. So of "a cat with a birthday cake" expect one of the two, or a muddle. The encoder puts all words that it does not know on one number, so `quokka` and `zyzzyva` are the *same* prompt.
#
# ## Try it
#
# Type your own. Where widgets cannot run, you see one call and its pictures.

# %%
from minidiff.course.playground import playground

playground(pipe, "a small red circle above a large blue square", steps=3 if quick else 20)

# %% [markdown]
# ## What the paper found, what you measured
#
# Only fragments of the paper's tables are known, and no quality figure of the text model is among them. Marks: (p) survives from the paper, (d) was decided in this course.
#
# | | paper | here |
# |---|---|---|
# | stages | one, of 128 pixels (p) | one, of 16 pixels |
# | weights | about 590 million, multipliers 1, 2, 3, 4, 4 (p) | two or three million |
# | text | frozen T5-XXL; 256 tokens of 1,024 numbers (p), though T5-XXL gives 4,096 | frozen `words`, 128 numbers a token |
# | where it enters | cross-attention beside self-attention, a pooled vector with the time (p) | cross-attention in encoder and middle, nothing pooled (d) |
# | order of lessons | not known | order of words first, relations then (d) |
# | judged | by eye (p) | by an oracle |
#
# What you found:

# %%
def say(split):
    return f"{float(live[split]['all']):.0%} of {live[split]['all'].count}"

ranking = ", ".join(f"{name} {float(final[name]):.0%}" for name in sorted(final, key=lambda name: -final[name]))
findings = [
    ("A single stage follows sentences (judged by eye)",
     f"right in all: {say('test')} fresh captions, {say('held_out')} with words that never met"),
    ("A strong encoder hears, a light decoder writes down", f"at equal steps, all right: {ranking}"),
    ("Cross-attention of its own optimises better than keys in one softmax (numbers lost)", "notebook 17"),
    ("Classifier-free guidance (the scale of the text model is not known)",
     f"most obedient at {best:g}, with {varied[best]:.0%} of the variety of real scenes"),
    ("The text encoder stays frozen", f"{len(encode.tokenizer.vocabulary.words):,} words; all others are one prompt"),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. A share and its error (two lines).** You get a list of true and false, one for each picture. Return the share of true ones and its standard error.

# %% tags=["exercise"] name="share_and_error"
def share_and_error(right):
    """right: a list of N bools -> (share, its standard error), two floats."""
    ...  # your code

# %% [markdown]
# The check knows the usual slips.

# %%
exercises.check_share_and_error(share_and_error)

# %% [markdown]
# **2. The gentlest scale that is good enough.** The most obedient of several scales is often so by luck, and high scales may cost variety. Choose the *smallest* scale whose shortfall against the best one, that of the largest mean, is at most two standard errors of the paired difference. With $d_i = b_i - a_i$ over the captions ($b$ the best scale, $a$ the one in question), that error is $\mathrm{std}(d)/\sqrt N$. The best scale itself always qualifies.

# %% tags=["exercise"] name="gentlest"
def gentlest(right):
    """right: {scale: (N,) bool}, the same captions and noise for all -> a scale, one of the keys."""
    ...  # your code

# %% [markdown]
# If it passes, ask `gentlest(obeyed)`.

# %%
exercises.check_gentlest(gentlest)

# %% [markdown]
# **3. Keep a pair secret.** Write what the split does: say whether a caption shows a pair. A pair is (colour, shape), or (relation, shape), which means that a thing of this shape stands so to the other one, *however the caption puts it*. `parse(caption)` gives a `Scene` with `things`, each with `.size`, `.colour`, `.shape`, and `relation` of the first to the second (`None` for one thing); `RELATIONS` maps "left of" to "right of", and so on.

# %% tags=["exercise"] name="shows"
def shows(caption, pair):
    """Whether the picture of this caption shows the pair: True or False."""
    ...  # your code

# %% [markdown]
# The check asks many captions.

# %%
exercises.check_shows(shows)

# %% [markdown]
# **4. A project.** Choose one. *The other way round:* draw captions and `around(caption)` from the same noise with `pipe`, and count how often both are right, or one, or none. *The second lesson:* train `history.ema` on with `turned=0.6`. What becomes of the bar "right or lower first"? The first takes a minute, the second hours of a CPU.
#
# ## What you learned
#
# - A conditional denoiser is a mean over fewer pictures. A word is worth the squared distance between the means with and without it, and guidance exaggerates the same difference.
# - A loss pays for pixels. For whose colour is whose it pays at high noise alone, and an exclusive or gives no first step: begin with an easier lesson.
# - Obedience has to be measured for itself, with a judge whose own errors are known, on fresh captions, with an error bar.
# - Combinations that were never seen test whether words were learned. Compare them with equally hard ones that were.
# - A negative prompt is guidance with another centre. Neither adds knowledge.
#
# ## Where to read on
#
# - The paper of IU-ViT and ASCEND, arXiv 2212.13771; `minidiff/backbones/ascend.py` says what of it is known.
# - Saharia et al., *Imagen*, 2022, arXiv 2205.11487: frozen T5 and a cascade.
# - Nichol et al., *GLIDE*, 2021, arXiv 2112.10741: text in the keys and values.
# - Liu et al., *CoordConv*, 2018, arXiv 1807.03247: row and column as channels.
#
# Notebook 19, *One stage or a cascade*, asks what the paper claims: whether one stage is enough.
