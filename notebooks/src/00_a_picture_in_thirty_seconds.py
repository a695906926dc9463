# %% [markdown]
# # 00 A picture in thirty seconds
#
# After this notebook you have made new pictures with a diffusion model, watched every step of their making, turned each of its knobs once, and checked whether it copies.
#
# Run time: under half a minute on a CPU with two cores; a T4 or a big GPU is welcome but not needed. Nothing is downloaded and nothing is trained.
#
# You will
#
# - load a small trained model and make pictures with it,
# - see what it starts from, what it believes on the way, and where it ends,
# - change steps, seed, label and guidance, and know what each of these words means,
# - look for copies of the pictures it learned from, and measure what you find,
# - see the map of the course.
#
# You need to have used PyTorch tensors before. You need no idea of diffusion. This notebook shows what happens; why it works is the business of the next three.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## Eight new pictures
#
# The line above says what this notebook runs on. (The *tier* is how long a notebook may train. This one does not.)
#
# Two calls are enough to make pictures. `load` fetches a model that comes with the package. `sample` asks it for eight pictures, one for each of eight kinds of emoji. They are small, 16 by 16 pixels, so that any laptop makes them while you watch. The arguments `y`, `steps`, `guidance` and `seed` are the knobs, and each has its section below.

# %%
diffusion = minidiff.load("emoji-unet", run.device)
emoji = minidiff.load_dataset("emoji", size=16)  # what the model learned from; here for the names of the kinds

kinds = [9, 7, 4, 3, 1, 6, 5, 8]  # eight of the ten; the titles say which
seed = 6
pictures = minidiff.sample(diffusion, 8, y=kinds, steps=20, guidance=2.0, seed=seed)
plots.grid(pictures, titles=[emoji.classes[kind] for kind in kinds])

# %% [markdown]
# They are small and a little rough, and the model is small too: the large ones of today are thousands of times its size. But nobody drew these (how true that is, you will measure below). Run the cell again with another `seed` and you get eight others, as often as you like. Some will be luckier and some less: seed 6 was picked from the first twenty, because you can name most of what it shows.
#
# What did you load? The centre of it is a **network**: a function with a great many adjustable numbers, its **weights**. They were set beforehand by **training**, that is, by showing the network pictures and nudging every weight towards a better answer, many thousand times. Beside the weights lies a card, on which the training is written down.

# %%
from minidiff.checkpoints import read_card

card = read_card("emoji-unet")
weights = sum(weight.numel() for weight in diffusion.network.parameters())
print(f"{weights:,} weights, trained on {len(emoji):,} pictures in {card['steps']:,} nudges")
print(f"a picture is {' x '.join(map(str, diffusion.shape))} numbers between -1 and 1")

# %% [markdown]
# A picture is three sheets of numbers, one each for red, green and blue, 768 numbers in all. The network takes a tensor of that shape and returns a tensor of that shape. Nothing in it draws. So what was it trained to do?
#
# ## Spoiling a picture
#
# It was trained to repair. You take a picture from the training set and spoil it with **noise**: a random number for every pixel and colour, drawn from the bell curve with mean 0 and standard deviation 1, which is what `torch.randn` does. You choose how much by a **time** $t$ between 0 and 1. At $t = 0$ you have the clean picture, at $t = 1$ nothing but noise. In between you mix,
#
# $$x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon,$$
#
# with $x_0$ the picture, $\varepsilon$ the noise, and two amounts: $\alpha$ of picture, $\sigma$ of noise. The rule that says how much of each at every time is called the **schedule**. Mix by hand, and let the package confirm it.

# %%
import torch

chosen = [200, 900, 1500]
clean = emoji.images()[chosen].to(run.device)  # (3, 3, 16, 16)
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(run.device)
times = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0]

spoiled = []
for t in times:
    alpha, sigma = diffusion.schedule(t)
    spoiled.append(alpha * clean + sigma * noise)
    assert torch.allclose(spoiled[-1], diffusion.forward_process(clean, t, noise))
plots.filmstrip(spoiled, times, rows=[emoji.captions[k] for k in chosen])

# %% [markdown]
# Here are the two amounts. The model you loaded uses the schedule called *cosine*.

# %%
t = torch.linspace(0, 1, 200)
alpha, sigma = diffusion.schedule(t)
assert torch.allclose(alpha**2 + sigma**2, torch.ones(200))
plots.lines({"picture, alpha": (t, alpha), "noise, sigma": (t, sigma)}, x="time t", y="amount")

# %% [markdown]
# Where the curves cross, both amounts are about 0.71 and not 0.5: it is their squares that add up to 1, as the cell asserts. Notebook 01 says why.
#
# Notice that noise does not replace the picture, it drowns it. At $t = 0.5$ you can still tell the flag by its stripes, and so can the network. That was its whole training: get a spoiled picture and the time, say what the clean one was. (Strictly, it answers in a form from which the clean picture follows by one line of arithmetic; notebook 03 compares the forms.)
#
# ## What the network sees
#
# Ask it. `denoise` is one call of the network, and `.x0` is its guess at the clean picture. The **label** `y`, a number from 0 to 9, tells it which of the ten kinds of emoji it is looking at. Each row below is one of the three pictures, and bears the name of its kind. For comparison, the last column is the plain average of all training pictures of that kind. The cell also prints how far guess and average are apart: the root mean square of the differences, over numbers that run from -1 to 1.

# %%
y = emoji.labels[chosen].to(run.device)
with torch.no_grad():
    guesses = [diffusion.denoise(x, t, y).x0 for x, t in zip(spoiled[1:], times[1:])]
average = torch.stack([emoji.images()[emoji.labels == label].mean(dim=0) for label in y.cpu()]).to(run.device)

apart = [(guess - average).square().mean().sqrt().item() for guess in guesses]
print("guess and average differ by", ", ".join(f"{d:.2f} (t = {t:g})" for t, d in zip(times[1:], apart)))
plots.filmstrip([*guesses, average], [*(f"t = {t:g}" for t in times[1:]), "average"],
                rows=[emoji.classes[label] for label in y])

# %% [markdown]
# Read a row from the left. With little noise the guess is the picture itself. With more noise it loses its details. At $t = 1$ the input holds nothing of the picture, and the guess is a smear: it has come close to the average of everything under this label. In training, an answer counted as the worse, the larger its squared distance from the truth. Judged like that, whoever knows nothing does best with the average of all possibilities. It is the safest guess, and never a good picture.
#
# That is the puzzle of this course. A machine that guesses, and guesses blurred when it matters, is supposed to invent sharp pictures. How?
#
# ## From noise to pictures, one step at a time
#
# The way from noise to picture need not be one jump. Start from pure noise, at $t = 1$. Ask for the guess. Do not believe it, only lean towards it: move to a slightly smaller $t$, where the mixture holds a little more guess and a little less noise. Ask again. What you hold now is no longer pure noise, so the next guess is a little better founded. One such move is a **step**, and the procedure that makes them is a **sampler**. The sampler hands you each step if you give it a function to call, here one that collects them in a list: `.x` is what it holds after the step, `.x0` the guess it leaned towards.

# %%
path = []
pictures = minidiff.sample(diffusion, 8, y=kinds, steps=20, guidance=2.0, seed=seed, progress=False,
                           on_step=path.append)
held = [step.t for step in path]  # the times after each step: 0.95, 0.90, ... 0.00
plots.filmstrip([step.x for step in path], held, rows=3, columns=8)

# %% [markdown]
# These are the first three of your eight pictures as the sampler holds them, from just below $t = 1$ at the left to $t = 0$ at the right. For a long time you see hardly anything. Now look at the same steps through the network's eyes, at the guesses it made on the way. Each was made where its step began, so the times are now 1.00 to 0.05.

# %%
asked = [1.0, *held[:-1]]  # the time before each step
plots.filmstrip([step.x0 for step in path], asked, rows=3, columns=8)

# %% [markdown]
# The guesses know much earlier where this is going. First come colours and the outline, and the details follow. Each guess commits to a little of what the last one left open. No one chose the details. They grew out of the noise you started from, because each step makes slightly more of what is slightly there.
#
# As a film it is more striking. On the left of each pair is what the sampler holds, on the right what the network believes.

# %%
pairs = [torch.stack([step.x[:4], step.x0[:4]], dim=1).flatten(0, 1) for step in path]  # (8, 3, 16, 16) a step
plots.animation(pairs, ms=160, columns=8)

# %% [markdown]
# ## The seed: where chance comes in
#
# A computer's random numbers follow from one whole number, the **seed**. Same seed, same noise. And this sampler, called DDIM, uses chance for the start noise alone. So, with all other knobs left as they are, the seed decides the picture. Three smileys twice from seed 1, and once from seed 2:

# %%
def smileys(seed, steps=20, num=3, guidance=2.0):
    kind = emoji.classes.index("Smileys & Emotion")
    return minidiff.sample(diffusion, num, y=kind, steps=steps, guidance=guidance, seed=seed, progress=False)

first, again, other = smileys(1), smileys(1), smileys(2)
assert torch.allclose(first, again, atol=1e-4)
print(f"seed 1 twice: largest difference {(first - again).abs().max():.1f}; "
      f"seed 1 and seed 2: {(first - other).abs().max():.1f}")

# %% [markdown]
# Now keep the seed and change the number of steps. You might expect other pictures, since the sampler goes another way. Guess before you look. The printed distance is again a root mean square, here from the pictures made in 50 steps.

# %%
counts = [1, 2, 4, 8, 16, 50]
series = [smileys(seed=1, steps=count) for count in counts]
gap = [(some - series[-1]).square().mean().sqrt().item() for some in series]  # from the last, per number
print("distance from 50 steps:", "  ".join(f"{count}: {value:.2f}" for count, value in zip(counts, gap)))
plots.filmstrip(series, [f"{count} step{'s' * (count > 1)}" for count in counts], scale=5)

# %% [markdown]
# More steps do not bring other pictures, they finish these. One step is the blurred guess from before. From then on every count heads for the same goal, which the start noise has fixed. The steps only decide how precisely you get there, and beyond 16 there is little left to gain here. Each costs a call of the network, and calls are what sampling costs. Notebooks 04 and 05 will explain why there is a goal at all, and how to reach it in fewer steps.
#
# ## The label, and guidance
#
# The ten labels are the ten categories of the emoji standard. They come with very different numbers of pictures.

# %%
per_kind = torch.bincount(emoji.labels)
print("\n".join(f"{k}  {name:18} {count:4} pictures" for k, (name, count) in enumerate(zip(emoji.classes, per_kind))))
print(f"In training, {card['training']['p_uncond']:.0%} of the labels were left out.")

# %% [markdown]
# In training the label was left out now and then. So this network can make both guesses: what it sees *given the label*, and what it sees *without any*. The difference between the two is what the label contributes. **Guidance** exaggerates that difference by a factor, the scale. With $w$ the scale,
#
# $$\text{guided guess} = \text{guess without} + w\,(\text{guess given the label} - \text{guess without}).$$
#
# Scale 1 is the plain guess given the label: the guess without cancels. Scale 2 goes as far again in the same direction. Apply the formula to the three pictures spoiled up to $t = 0.7$, and let the package agree. (It says `classifier_free`, because an older form of guidance needed a second network, a classifier.)

# %%
x, t, scale = spoiled[5], times[5], 2.0
with torch.no_grad():
    given = diffusion.denoise(x, t, y).x0
    without = diffusion.denoise(x, t, diffusion.network.null(y)).x0  # null: the label that means 'no label'
    mine = without + scale * (given - without)
    package = minidiff.classifier_free(diffusion.denoise, y, scale, diffusion.network.null(y))(x, t).x0
assert torch.allclose(mine, package, atol=1e-4 if run.device.type == "cpu" else 1e-2)
plots.filmstrip([clean, x, without, given, mine], ["clean", "spoiled", "no label", "label", "scale 2"])

# %% [markdown]
# On one guess it is a detail: look at the rim of the clock. Over twenty steps it adds up. Below, each column starts from the same noise and each row has its own scale. As a measure of variety the cell prints how far the six pictures of a row are from each other, on average, by the same distance as before.

# %%
scales = [1.0, 2.0, 6.0]
rows = torch.stack([smileys(seed=5, num=6, guidance=scale) for scale in scales]).cpu()  # (3, 6, 3, 16, 16)
variety = [torch.pdist(row.clamp(-1, 1).flatten(1)).mean().item() / 768**0.5 for row in rows]
print("   ".join(f"scale {scale:g}: variety {value:.2f}" for scale, value in zip(scales, variety)))
plots.filmstrip(rows.transpose(0, 1), rows=[f"scale {scale:g}" for scale in scales], scale=5)

# %% [markdown]
# Scale 1 wanders: not all of these are faces, as not all pictures of this kind are. Scale 2 brings the strays back to what is typical. Scale 6 turns up the contrast, and everything looks more alike. Read the printed number together with the picture: loud colours are far apart too, and the distance takes that for variety. This trade, likeness to the label against variety, will have a notebook of its own (07).
#
# ## All the knobs at once
#
# Where you run this yourself, sliders appear above the picture. Elsewhere, on GitHub for example, you see one result, for the settings in the cell's first line, and there you can change them by hand.

# %%
def show(label="Flags", seed=0, steps=20, guidance=2.0):
    kind = emoji.classes.index(label)
    return plots.grid(minidiff.sample(diffusion, 6, y=kind, steps=steps, guidance=guidance, seed=seed, progress=False))

widgets.explore(show, label=emoji.classes, seed=range(10), steps=[1, 2, 5, 10, 20, 50], guidance=[1.0, 2.0, 3.0, 6.0])

# %% [markdown]
# Three things to try. Set guidance to 1 and steps to 1, and look at the averages of all ten kinds. Keep the seed and change the label: colours and layout often survive. Look at *Component*, and remember how many pictures that kind has.
#
# ## Ten kinds of picture
#
# And now everything the model knows, a kind per row. All rows begin with the same five noises, so go down a column and see what a noise insists on whatever the label.

# %% tags=["picture"]
y_all = torch.arange(10).repeat_interleave(5)
made = torch.cat([minidiff.sample(diffusion, 5, y=kind, steps=20, guidance=2.0, seed=0, progress=False)
                  for kind in range(10)]).cpu().clamp(-1, 1)  # (50, 3, 16, 16)
plots.filmstrip(made.unflatten(0, (10, 5)).transpose(0, 1), rows=emoji.classes, scale=5)

# %% [markdown]
# ## Does it copy?
#
# A model that had merely stored its training pictures would look splendid. So look for originals. For every picture you made, find the training picture that is nearest, measured by the root mean square difference of all 768 numbers.

# %%
train = emoji.images().flatten(1)  # (3450, 768)
distance = torch.cdist(made.flatten(1), train) / 768**0.5  # (50, 3450)
nearest = distance.min(dim=1)

order = nearest.values.argsort()[[0, 1, 2, 3, 12, 25, 37, 49]]  # the four closest, then evenly on to the farthest
pairs = torch.stack([made[order], train[nearest.indices[order]].unflatten(1, (3, 16, 16))])
heads = [f"{value:.2f}" for value in nearest.values[order]]
plots.filmstrip(pairs.transpose(0, 1), heads, rows=["made", "nearest"])

# %% [markdown]
# A distance alone says nothing. Is 0.3 near? You need a yardstick: pictures that certainly are no copies. The data set keeps a tenth of its emoji back, which the network never saw. They too have nearest neighbours in the training set, and some are very near, because clocks and flags exist in long series. If your pictures are nearer than those, be suspicious. One thing makes the comparison fair: you made each kind five times, so the cell draws each kind equally often from the held-out pictures too.

# %%
held_out = minidiff.load_dataset("emoji", size=16, split="test")
yardstick = (torch.cdist(held_out.images().flatten(1), train) / 768**0.5).min(dim=1).values
chance = 1 / torch.bincount(held_out.labels)[held_out.labels]  # a picture of a rare kind is drawn more often
yardstick = yardstick[torch.multinomial(chance, 1000, replacement=True)]
limit = yardstick.quantile(0.05)
suspects = nearest.values < limit

def share_below(values):  # the share of pictures below each distance
    return values.sort().values, torch.arange(1, len(values) + 1) / len(values)

print(f"median distance: made {nearest.values.median():.2f}, held out {yardstick.median():.2f}")
print(f"nearer than 95 % of the held-out pictures ({limit:.2f}): {suspects.sum()} of {len(made)} made, kinds: "
      f"{', '.join(emoji.classes[k] for k in y_all[suspects].unique()) or '(none)'}")
plots.lines({"made here": share_below(nearest.values), "drawn by people, held out": share_below(yardstick)},
            x="distance to the nearest training picture", y="share of pictures below")

# %% [markdown]
# Your curve lies to the left of the other: what the model makes stays nearer to its training pictures than new drawings do. Among the suspects are squares of *Component*. That kind has six training pictures, all of them plain squares in a skin tone, and with so little to learn from, making and copying are the same thing. The clock is a near copy as well: its neighbour's hand stands in the same place, and only the tint differs. The farther pairs are another matter. They share colours, a subject or a pose, and not the drawing.
#
# Two cautions. Fifty pictures are few. And this distance compares pixel by pixel, so a copy that is shifted or tinted would pass for new. Does guidance play a part? Set it to 1 in the cell of the ten kinds and run on from there. Notebook 09 will bring better yardsticks.
#
# ## What the papers found, and what you measured
#
# None of this is our discovery. The table puts your numbers, computed above, beside what is published about larger models.

# %%
from IPython.display import Markdown

rows = [
    ["question", "what the papers found", "what we measured here"],
    ["---"] * 3,
    ["same noise, fewer steps",
     "20 to 100 steps come close to 1000, and the same noise gives the same motif (Song et al. 2021)",
     f"distance from the 50-step picture: {gap[0]:.2f} with 1 step, {gap[2]:.2f} with 4, {gap[4]:.2f} with 16"],
    ["more guidance",
     "better likeness to the label, less variety (Ho and Salimans 2022)",
     f"variety {variety[0]:.2f} at scale 1, {variety[1]:.2f} at 2, {variety[2]:.2f} at 6"],
    ["copies",
     "rare, and mostly of pictures that stood in the training set many times (Carlini et al. 2023)",
     f"{suspects.sum()} of {len(made)} suspiciously near; of new drawings {0.05 * len(made):.1f} would be"],
]
Markdown("\n".join(f"| {' | '.join(row)} |" for row in rows))

# %% [markdown]
# ## Exercises
#
# Each is a function to complete: put your code in the place of the `...`, run the cell, run the check below it. A check explains what is wrong. There are [solutions](solutions/00_a_picture_in_thirty_seconds.py), for afterwards.
#
# **1. What does it cost?** One **evaluation** is one picture going through the network once. How many evaluations does `minidiff.sample` need for `num` pictures in `steps` steps at a given scale of `guidance`? Look again at the formula of guidance: it needs two guesses, but at scale 1?

# %% tags=["exercise"] name="evaluations"
def evaluations(num, steps, guidance=1.0):
    ...  # return a whole number

# %% [markdown]
# The check counts what really happens, on a tiny network.

# %%
exercises.check_evaluations(evaluations);

# %% [markdown]
# **2. Write the sampler.** You hold `x`, and you know the amounts it was mixed with, `alpha` of picture and `sigma` of noise. The network has told you its `guess` at the picture. So which noise must be in `x`? Solve the mixing formula for it: one line. Then mix the guess and that noise again with the amounts of the next time, `alpha_next` and `sigma_next`: a second line. This is all of DDIM.

# %% tags=["exercise"] name="ddim_step"
def ddim_step(x, guess, alpha, sigma, alpha_next, sigma_next):
    ...  # two lines: the noise in x, and the new mixture

# %% [markdown]
# The check compares you with the package's sampler. Then the cell makes pictures with your step in the loop. If it is right, they are the eight from the top of the page.

# %%
from minidiff.samplers import bind

exercises.check_ddim_step(ddim_step)

denoise = bind(diffusion, torch.tensor(kinds, device=run.device), guidance=2.0)  # with labels and guidance built in
stops = minidiff.spacing(diffusion.schedule, 20)  # 1.0, 0.95, ... 0.0
seeded = minidiff.seeded_noise([(seed, k) for k in range(8)])  # noise of its own for each picture
x = diffusion.schedule.start((8, 3, 16, 16), seeded, device=run.device)
with torch.no_grad():
    for t, t_next in zip(stops, stops[1:]):
        x = ddim_step(x, denoise(x, t).x0, *diffusion.schedule(t), *diffusion.schedule(t_next))
        if x is None:  # nothing written yet
            break
if x is not None:
    print(f"largest difference from the eight at the top: {(x - pictures).abs().max():.4f}")
    display(plots.grid(x))

# %% [markdown]
# **3. Between two noises.** If a noise is a picture in waiting, then between the noises of two animals should lie further animals. The obvious path is the straight line. Walk along it and keep an eye on the length of the noise, the root of the sum of its squares.

# %%
# The noise of picture 4 from seed 2, and of picture 4 from seed 5.
ends = minidiff.seeded_noise([(2, 4), (5, 4)])(torch.empty(2, *diffusion.shape))  # (2, 3, 16, 16)
shares = torch.linspace(0, 1, 7).tolist()

def line(a, b, share):
    return (1 - share) * a + share * b

def walk(path):
    x = torch.stack([path(*ends, share) for share in shares]).to(run.device)
    denoise = bind(diffusion, torch.full((7,), 1, device=run.device), guidance=2.0)
    *_, last = minidiff.samplers.ddim(denoise, diffusion.schedule, x, stops)
    return plots.grid(last.x, titles=[f"length {length:.1f}" for length in x.flatten(1).norm(dim=1)])

walk(line)

# %% [markdown]
# Both ends are about as long as noise of 768 numbers nearly always is, $\sqrt{768} = 27.7$ give or take two. The middle is much shorter. The network never saw noise that weak at $t = 1$, and it answers with smooth patches instead of animals. Noise lives close to a sphere, so walk on the sphere. With $\theta$ the angle between $a$ and $b$, the point at a share $s$ of the way is
#
# $$\frac{\sin((1-s)\,\theta)}{\sin\theta}\,a + \frac{\sin(s\,\theta)}{\sin\theta}\,b, \qquad \cos\theta = \frac{a\cdot b}{|a|\,|b|}.$$
#
# Here $a\cdot b$ is the sum of all products of an entry of $a$ with its partner in $b$, one number, and $|a|$ is the length of $a$.

# %% tags=["exercise"] name="between"
def between(a, b, share):
    ...  # a, b: tensors of the same shape; share: a number from 0 to 1

# %% [markdown]
# The check tries two tensors that do not stand at a right angle. Then the cell repeats the walk on your path.

# %%
exercises.check_between(between)
walk(between) if between(*ends, 0.5) is not None else None

# %% [markdown]
# ## The map of the course
#
# Twenty-four notebooks in four parts. The filled ones exist today, the others follow.

# %%
parts = {
    "I  Foundations": "A picture in thirty seconds|Destroying images properly|From likelihood to a squared error|"
    "DDPM in a hundred lines|Scores, SDEs and ODEs|Samplers are integrators|Flow matching|Guidance",
    "II  Backbones": "The U-Net, drawn from its tensors|Training well and knowing it|U-ViT: everything is a token|"
    "IU-ViT: a little convolution|DiT: conditioning by modulation|DiffiT: attention knows the time|"
    "Windows, pyramids: Swin and HiT|ASCEND: encoder and light decoder|The backbone shoot-out",
    "III  Text to image": "Words: text encoders|Text to image from zero|One stage or a cascade",
    "IV  Beyond": "Latent diffusion|From a thousand steps to one|Editing with a model you have|Your data, your GPU",
}
written = [*range(16), 17, 18, 19, 23]

# %% [markdown]
# The numbers give the order of reading. After part I you may go to any column.

# %%
import matplotlib.pyplot as plt

@plots.quiet
def course_map():
    figure, axes = plt.subplots(figsize=(9.6, 3.9))
    number = 0
    for column, (part, titles), color in zip((0, 1.05, 2.2, 3.0), parts.items(), plots.COLORS):
        axes.text(column, 0.75, part, fontsize=11, weight="bold", color=color)
        for row, title in enumerate(titles.split("|")):
            here = number in written
            box = dict(boxstyle="round,pad=0.35", facecolor=color if here else "white", edgecolor=color)
            axes.text(column, -row, f"{number:02}", color="white" if here else color, fontsize=9, bbox=box, va="center")
            axes.text(column + 0.12, -row, title, fontsize=8, va="center", color="black" if here else "#666666")
            number += 1
    axes.set(xlim=(-0.1, 3.95), ylim=(-8.5, 1.2))
    axes.axis("off")
    return figure

course_map()

# %% [markdown]
# Part I makes everything on this page understandable and gives you every line of it. Part II exchanges the network, part III replaces ten labels by sentences, part IV makes it large, fast and yours.
#
# ## What you learned
#
# A diffusion model is a network trained to repair pictures spoiled by noise, and a schedule that says how they are spoiled. To make a picture, a sampler starts from pure noise, fixed by the seed, and asks for a guess, leans towards it, and asks again. More steps follow the same path more precisely. A label says what to see, and guidance exaggerates what the label contributes, at the price of variety. Whether a model copies can be measured, if you bring a yardstick.
#
# ## Where to read on
#
# Next comes [01 Destroying images properly](01_destroying_images_properly.ipynb): what the two amounts must fulfil, and why there are several schedules.
#
# The papers behind this page, to be read later: Ho, Jain and Abbeel, *Denoising diffusion probabilistic models* (arXiv:2006.11239); Song, Meng and Ermon, *Denoising diffusion implicit models* (arXiv:2010.02502), the sampler used here; Nichol and Dhariwal, *Improved denoising diffusion probabilistic models* (arXiv:2102.09672), the cosine schedule; Ho and Salimans, *Classifier-free diffusion guidance* (arXiv:2207.12598); Carlini et al., *Extracting training data from diffusion models* (arXiv:2301.13188).
