# %% [markdown]
# # 11 IU-ViT: a little convolution
#
# After this notebook you can give a transformer back a sense of neighbourhood at two places, say what each costs, and tell a better idea from a better start.
#
# Run time: two to three minutes on a CPU with two idle cores; expect as long on a T4 or a big GPU, which train for longer. Nothing is downloaded.
#
# You will
#
# - prove that a transformer does not know which patches are neighbours,
# - build the two changes of IU-ViT by hand, and get the numbers of the package,
# - count what they cost, and what each head can tell of a token,
# - read a 2x2 ablation from recorded runs, and ask what "equal compute" means in it,
# - draw how far each part sees,
# - compare two ways to listen to a text.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## What a transformer lacks
#
# [Notebook 10](10_u_vit.ipynb) cut a picture into patches of $p$ by $p$ pixels and gave them to a transformer as a set of tokens, vectors of $d$ numbers. A set has no order. The only hint at who stands beside whom is the table of positions, and it starts as random numbers. A convolution knows its neighbours from the start.
#
# You can prove it. Shuffle the tokens, let a layer work, and put the results back in order. If the layer does not know the places, nothing has changed. Try it on three layers with random weights, for a grid of 8 by 8 patches and one further token for the time, which stays first. The third layer is new; you build it next.

# %%
import torch
import torch.nn.functional as F
from torch import nn
from minidiff.backbones.iuvit import DWConvFFN, JointAttention, RearrangeHead
from minidiff.backbones.uvit import LinearHead
from minidiff.layers import Attention, CrossAttention, Mlp

torch.manual_seed(0)
grid, dim = 8, 96
layers = {"attention": Attention(dim, 4), "MLP": Mlp(dim, 4 * dim),
          "DWConv-FFN": DWConvFFN(dim, 4 * dim, grid)}
x = torch.randn(2, 1 + grid**2, dim)
order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(grid**2)])
moved = {}
with torch.no_grad():
    for name, layer in layers.items():
        there_and_back = layer(x[:, order])[:, order.argsort()]
        moved[name] = (there_and_back - layer(x)).norm() / layer(x).norm()
        print(f"{name:11} changes by {moved[name]:.1e} of its size when the patches are shuffled")
assert moved["attention"] < 1e-5 and moved["MLP"] < 1e-5 < 0.01 < moved["DWConv-FFN"]

# %% [markdown]
# Attention and MLP do not care. All they know of places they must learn, from 64 vectors of random numbers. IU-ViT (arXiv 2212.13771) spares them part of that. It keeps the trunk of U-ViT, with tokens, attention and long skips, and adds two small convolutions. One sits inside every block, the other at the very end. No code and no weights are public; what the paper leaves open, and what was decided, stands near the end.
#
# ## The first change: DWConv-FFN
#
# The MLP (or feed-forward network, FFN) of a block widens each token to $4d$ channels, applies GELU and comes back to $d$. In between, lay the widened tokens $h$ out as the grid that they came from, and give every channel its own 3 by 3 kernel. This is a **depth-wise** convolution: channels do not mix, since the two linear maps around it do that already. For channel $c$ at row $i$ and column $j$, with kernel $w$ and bias $\beta$,
#
# $$\text{DW}(h)_{c,i,j} = \beta_c + \sum_{u=-1}^{1}\sum_{v=-1}^{1} w_{c,u,v}\; h_{c,\,i+u,\,j+v}\,,$$
#
# with zeros outside. The full order is linear, GELU, LayerNorm, DW, GELU, LayerNorm, linear. The time token has no place on the grid and skips DW. Build it, with the weights of the layer above. And count: 9 weights and a bias for each of the $4d$ channels are $40\,d$ in all, beside the $8d^2$ of the two linear maps. At $d = 512$ that is one per cent more.

# %%
def norm(x):  # LayerNorm without scale and shift
    variance = x.var(dim=-1, unbiased=False, keepdim=True)
    return (x - x.mean(dim=-1, keepdim=True)) / (variance + 1e-5).sqrt()

def dwconv_ffn(x, ffn, extras=1):
    h = norm(F.gelu(F.linear(x, ffn.fc1.weight, ffn.fc1.bias)))  # (B, 1 + N, 4 d)
    side = int((h.shape[1] - extras) ** 0.5)
    image = h[:, extras:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (B, 4 d, side, side)
    image = F.conv2d(image, ffn.dwconv.weight, ffn.dwconv.bias, padding=1, groups=image.shape[1])
    h = torch.cat([h[:, :extras], image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    return F.linear(norm(F.gelu(h)), ffn.fc2.weight, ffn.fc2.bias)

ffn = layers["DWConv-FFN"]
with torch.no_grad():
    assert torch.allclose(dwconv_ffn(x, ffn), ffn(x), atol=1e-5)
print("DWConv-FFN: equal")
for width in (96, 512, 1536):
    with torch.device("meta"):
        plain, local = (sum(p.numel() for p in m.parameters())
                        for m in (Mlp(width, 4 * width), DWConvFFN(width, 4 * width, 16)))
    assert local - plain == 40 * width
    print(f"d = {width:4}: MLP {plain:10,} weights, DWConv-FFN {local:10,}, {local / plain - 1:+.1%}")

# %% [markdown]
# ## The second change: rearrange first
#
# At the end, tokens must become pixels. U-ViT maps each token linearly to the $3p^2$ numbers of its patch, lays the patches out, and lets a 3 by 3 convolution from 3 to 3 channels smooth the borders. This is **linear first**. The convolution sees finished pixels. At $p = 2$ a token of 96 numbers has been cut down to 12 before any neighbour may look at it.
#
# IU-ViT turns the order round. It lays the tokens out first. A token of $d$ numbers becomes $p \times p$ pixels of $d/p^2$ features each, and *then* one convolution makes the three colours. It sees features on both sides of each border. This is **rearrange first**.

# %%
@plots.quiet
def drawing(d=96, p=2):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8.2, 1.7))
    token, last = f"token:\n{d} numbers", "3 x 3 convolution:\n3 colours a pixel"
    linear = [token, f"linear:\n{3 * p**2} numbers", f"lay out:\n{p} x {p} pixels of 3", last]
    rearrange = [token, f"lay out:\n{p} x {p} pixels of {d // p**2}", last]
    for y, title, parts in ((1, "linear first", linear), (0, "rearrange first", rearrange)):
        axes.text(-1.5, y, title, va="center")
        for k, part in enumerate(parts):
            box = dict(boxstyle="round", facecolor=plots.COLORS[part == last], edgecolor="none")
            axes.text(k, y, part, ha="center", va="center", color="white", fontsize=9, bbox=box)
            if k:
                axes.annotate("", (k - 0.42, y), (k - 0.58, y), arrowprops=dict(arrowstyle="->"))
    axes.set(xlim=(-1.55, 3.5), ylim=(-0.5, 1.5))
    axes.axis("off")
    return figure

drawing()

# %% [markdown]
# Both by hand:

# %%
def lay_out(tokens, p):
    """(B, N, p * p * C) -> (B, C, H, W): in each token the row, the column, then the channel."""
    side = int(tokens.shape[1] ** 0.5)
    rows = tokens.unflatten(1, (side, side)).unflatten(3, (p, p, -1))  # (B, row, column, p, p, C)
    return rows.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

def linear_first(tokens, head, p):
    pixels = lay_out(F.linear(tokens, head.linear.weight, head.linear.bias), p)
    return F.conv2d(pixels, head.conv.weight, head.conv.bias, padding=1)  # 3 -> 3 channels

def rearrange_first(tokens, head, p):
    return F.conv2d(lay_out(tokens, p), head.conv.weight, head.conv.bias, padding=1)  # d / p^2 -> 3 channels

heads = {"linear first": (LinearHead(dim, 2, 3, grid, conv=True), linear_first),
         "rearrange first": (RearrangeHead(dim, 2, 3, grid), rearrange_first)}
tokens = torch.randn(2, grid**2, dim)
for name, (head, by_hand) in heads.items():
    with torch.no_grad():
        assert torch.allclose(by_hand(tokens, head, 2), head(tokens), atol=1e-5)
    print(f"{name}: equal, {sum(p.numel() for p in head.parameters()):,} weights")

# %% [markdown]
# Both heads are linear (up to a bias), so everything about them can be computed. Take a token in the middle. What it does to the picture is a matrix: from its $d$ numbers to all pixels. The **rank** of the matrix says how many independent directions of the $d$ reach the picture at all. A token reaches its own patch and a rim of one pixel, $3(p+2)^2$ numbers: 48 at $p = 2$. But linear first lets only $3p^2 = 12$ through.

# %%
def reach(head, tokens, place):
    """The matrix (pixels, d) from one token to the image."""
    def image(token):
        return head(torch.cat([tokens[:, :place], token[None, None], tokens[:, place + 1 :]], dim=1)).flatten()
    return torch.autograd.functional.jacobian(image, tokens[0, place])

maps = {}
for name, (head, _) in heads.items():
    matrix = reach(head, tokens[:1], grid * 4 + 4)
    rank = torch.linalg.matrix_rank(matrix).item()
    maps[name] = matrix.square().sum(1).view(3, 16, 16).sum(0)
    print(f"{name:15} {rank} of {dim} directions of a token reach the picture, {(maps[name] > 0).sum()} pixels move")
    assert rank == {"linear first": 12, "rearrange first": 48}[name]
pictures = torch.stack([0.85 - 1.85 * (m / m.max()).sqrt() for m in maps.values()])  # dark: it moves much
plots.grid(pictures[:, None], titles=list(maps), scale=8)

# %% [markdown]
# The token's own patch is the dark square, the rim belongs to its neighbours. Both heads touch the same pixels. But linear first has 12 things to say about them, rearrange first 48. The paper says that linear first loses information; this is a way to count it.
#
# And the price? Multiplications and additions both count as operations. For each of 3 colours, rearrange first reads 9 pixels of $d/p^2$ features: $2\cdot 9\cdot 3\cdot d/p^2$ a pixel. A token has $p^2$ pixels and costs $54\,d$, whatever $p$ is. Linear first you will count in exercise 1.

# %%
from torch.utils.flop_counter import FlopCounterMode

for p in (2, 4, 8, 16):
    with torch.device("meta"):
        first, second = LinearHead(1536, p, 3, 16, conv=True), RearrangeHead(1536, p, 3, 16)
    rows = []
    for head in (first, second):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            head(torch.empty(1, 256, 1536, device="meta"))
        rows.append((counter.get_total_flops() / 1e6, sum(w.numel() for w in head.parameters())))
    (a, n), (b, m) = rows
    print(f"patch {p:2}: linear first {a:6.1f} MFLOP, {n:9,} weights   rearrange first {b:5.1f} MFLOP, {m:6,} weights")
    assert round(b * 1e6) == 256 * 54 * 1536

# %% [markdown]
# Read the last line twice. With patches of 16, a token of width 1536 is cut into 256 pixels of 6 features, and the whole head has 165 weights. The trunk must now hand over pixels that are all but finished. So it must in the small networks further on, where 96 numbers meet patches of 4.
#
# ## The published sizes
#
# IU-ViT keeps the number of tokens at 256 for all sizes of pictures, so the patch grows with the picture. On the `meta` device even the largest can be counted.

# %%
from IPython.display import Markdown

printed = {"cifar10": 45, "celeba64": 45, "church128": 442, "church256": 527, "church256_wide": 935, "t2i_64": 307}
rows, counted = [], {}
for size, millions in printed.items():
    with torch.device("meta"):
        network = minidiff.create_model(f"iuvit_{size}")
    y = torch.empty(1, 256, 1024) if size == "t2i_64" else None
    whole = minidiff.summary(network, y=y)
    counted[size] = whole.parameters
    assert round(whole.parameters / 1e6) == millions
    rows.append(f"| {size} | {network.shape[1]} | {network.head.patch_size} | {network.embed_dim} | {millions} M "
                f"| {whole.parameters:,} | {whole.flops / 1e9:.0f} |")
with torch.device("meta"):
    other = minidiff.create_model("iuvit_church256_wide", rearrange_first=False)
print(f"church256_wide with linear first: {sum(w.numel() for w in other.parameters()) / 1e6:.1f} M")
head = "| size | pixels | patch | width | the paper prints | here | GFLOP |\n|" + "---|" * 7
Markdown("\n".join([head, *rows]))

# %% [markdown]
# The widths are deduced, not read: they are what makes the totals come out. With linear first the wide model would miss its 935, as the printed line shows. So the totals support these choices.
#
# ## The two by two
#
# Two changes, each on or off: four networks. The paper has this table for CIFAR-10, and reports that each change helps, alone and together. The package has recorded the same table for emoji and their ten classes: 600 steps of 64 pictures at 16 pixels, patches of 2, width 96, five blocks. `python tools/ablation.py iuvit --tier cpu` makes the runs again.
#
# All four have the same data, seed, steps and noise. "Equal compute" would mean more: the same work. So look at what each costs first. Operations are counted; the time is measured here, in turns.

# %%
import statistics
import time
from minidiff.course.recorded import recorded

kinds = {"mlp-linear": "U-ViT", "mlp-rearrange": "+ rearrange first", "dwconv-linear": "+ DWConv",
         "dwconv-rearrange": "both: IU-ViT"}
switches = {key: dict(dwconv="dwconv" in key, rearrange_first="rearrange" in key) for key in kinds}
nets = {key: minidiff.create_model("iuvit_tiny", num_classes=10, **options) for key, options in switches.items()}
labels = torch.arange(32) % 10
x, when, spent = torch.randn(32, 3, 16, 16), torch.full((32,), 500.0), {key: [] for key in kinds}
for _ in range(6 if run.tier != "smoke" else 2):
    for key, net in nets.items():
        start = time.perf_counter()
        net(x, when, labels).square().mean().backward()
        spent[key].append(time.perf_counter() - start)
work = {key: minidiff.summary(net) for key, net in nets.items()}
seconds = {key: statistics.median(values[1:]) for key, values in spent.items()}
for key, name in kinds.items():
    print(f"{name:18} {work[key].parameters:,} weights  {work[key].flops / work['mlp-linear'].flops:.3f} x operations"
          f"  {seconds[key] / seconds['mlp-linear']:.2f} x time of a training step")
assert max(w.flops for w in work.values()) < 1.05 * work["mlp-linear"].flops

# %% [markdown]
# In operations the four agree within a few per cent. In time on a CPU they need not: a depth-wise convolution does little with each number it fetches, and norms are not counted. Now the losses. Each is the mean squared error of $v$ over ten noise levels of unseen emoji. Each network was trained once. What would another seed change? Notebook 10 repeated its U-ViT with the last convolution and without.

# %%
runs = recorded("iuvit", "cpu")  # `python tools/ablation.py iuvit --tier cpu` makes them
assert all(work[key].parameters == runs[key]["model"]["parameters"] for key in kinds)
unseen_loss = {key: record["held_out"]["mean"] for key, record in runs.items()}
base, gain = unseen_loss["mlp-linear"], {}
for head in ("linear", "rearrange"):
    gain[head] = unseen_loss[f"mlp-{head}"] - unseen_loss[f"dwconv-{head}"]
    print(f"DWConv beside {head} first: better by {gain[head]:+.4f}")
older = {key: record["held_out"]["mean"] for key, record in recorded("uvit", "cpu").items()}
luck = [abs(older[f"{key}-seed1"] / older[key] - 1) for key in ("concat", "no-conv")]
print(f"two seeds of a U-ViT with the last convolution differ by {luck[0]:.1%}, without by {luck[1]:.1%}")
rows = [f"| {name} | {unseen_loss[key]:.4f} | {unseen_loss[key] / base:.2f} |" for key, name in kinds.items()]
Markdown("\n".join(["| after 600 steps | held-out loss | as a share of U-ViT's |", "|---|---|---|", *rows]))

# %% [markdown]
# Two changes that mend different faults would gain as much together as one by one. Compare the first two lines: where DWConv gains much less beside the better head, both mend in part the same fault. A gap no larger than luck ranks nothing.
#
# Where in the noise is the difference? The curves are the loss at each level, divided by U-ViT's. Below are samples, one row a network, all from the same noise and labels; after 600 steps all are poor. Loss and distance need not rank the networks alike: the loss counts every noise level, the distance judges only what comes out.

# %%
losses = {key: torch.tensor(runs[key]["held_out"]["losses"]) for key in kinds}
times = runs["mlp-linear"]["held_out"]["times"]
curves = {name: (times, losses[key] / losses["mlp-linear"]) for key, name in kinds.items()}
display(plots.lines(curves, x="t", y="loss / loss of U-ViT"))
for key, name in kinds.items():
    print(f"{name}: Fréchet distance of 512 samples {runs[key]['distances']['frechet']['value']:.2f}")
columns = [torch.stack([runs[key]["samples"][k] for key in kinds]) for k in range(8)]
plots.filmstrip(columns, rows=list(kinds.values()), scale=5)

# %% [markdown]
# Would equal operations or equal time change the verdict? The cheaper network could make more steps. What would that bring it? Fit a line to U-ViT's recorded training loss over the *logarithm* of the steps, see whether it fits, and read off what a few per cent more steps are worth.

# %%
curve = torch.tensor(runs["mlp-linear"]["curve"])  # each entry the mean of equally many steps
steps = (torch.arange(len(curve)) + 0.5) * runs["mlp-linear"]["training"]["steps"] / len(curve)
late = steps > 150  # after the warm-up
line = torch.stack([steps.log(), torch.ones(len(curve))], dim=1)
fit = torch.linalg.lstsq(line[late], curve[late, None]).solution
slope = -fit[0].item()  # what 2.72 times the steps take off the loss
for key in list(kinds)[1:]:
    flops, slow = work[key].flops / work["mlp-linear"].flops, seconds[key] / seconds["mlp-linear"]
    gains = [max(slope * torch.tensor(more).log().item(), 0) for more in (flops, slow)]
    print(f"{kinds[key]:18} better by {base - unseen_loss[key]:+.4f}; U-ViT would gain {gains[0]:.4f} from as many "
          f"operations, {gains[1]:.4f} from as much time")
plots.lines({"U-ViT": (steps, curve), "fit": (steps[late], line[late] @ fit[:, 0])}, x="step", y="loss", log="x")

# %% [markdown]
# Where the first number is much the largest, the verdict does not depend on how compute is counted. Where the last one comes near it, be careful: the convolution is cheap in operations, not in time. And where the curve ends flatter than the line, the gains are overrated.
#
# ## A better idea, or a better start?
#
# You know a reason to be careful from notebook 10. U-ViT's last convolution starts with small random numbers, and all colours must pass through it. After a short training a U-ViT *without* it was better. Rearrange first removes exactly this convolution. So is it better because it sees features, or because it gets rid of a bad start?
#
# The experiment is easy. Set U-ViT's convolution to the identity before training. It has as many weights, can compute the same functions and costs the same. Only the start differs.

# %%
emoji = minidiff.load_dataset("emoji", size=16)
unseen = minidiff.load_dataset("emoji", size=16, split="test")

def make(key, identity=False):
    torch.manual_seed(0)
    network = minidiff.create_model("iuvit_tiny", **switches[key])
    if identity:
        nn.init.dirac_(network.head.conv.weight)  # 1 in the middle, from each channel to itself
        nn.init.zeros_(network.head.conv.bias)
    return minidiff.Diffusion(network.to(run.device), minidiff.schedules.cosine(), "v", shape=(3, 16, 16))

plans = {"U-ViT": ("mlp-linear", False), "U-ViT, identity start": ("mlp-linear", True),
         "+ rearrange first": ("mlp-rearrange", False), "both: IU-ViT": ("dwconv-rearrange", False)}
fresh = {name: make(*plan).eval() for name, plan in plans.items()}
each = budget("each of four networks", smoke=2, cpu=200, gpu=3000, seconds_per_step=0.07)
recipe = dict(steps=each, batch_size=32 if run.tier != "smoke" else 4, lr=1e-3, warmup=50, ema=0.99, progress=False)
trained = {}
for name, plan in plans.items():
    history = minidiff.training.train(make(*plan), emoji, **recipe)
    trained[name] = history.ema
    print(f"{name:22} {history}")

# %% [markdown]
# The judge is the same as for the recorded runs: ten noise levels of unseen emoji, with the same noise for all. (These trainings are shorter and without labels: compare only here.)

# %%
levels = [(i + 0.5) / 10 for i in range(10)]

@torch.no_grad()
def held_out(model, num=372 if run.tier != "smoke" else 8):
    x0 = unseen.images()[:num].to(run.device)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(run.device)
    return torch.tensor([model.loss(x0, t=torch.full((num,), t, device=run.device), eps=eps).mean().item()
                         for t in levels])

judged = {name: held_out(model) for name, model in trained.items()}
gap = judged["U-ViT"].mean() - judged["+ rearrange first"].mean()
start_alone = ((judged["U-ViT"].mean() - judged["U-ViT, identity start"].mean()) / gap).item()
print(f"the identity start alone closes {start_alone:.0%} of the gap from U-ViT to rearrange first")
plots.bars(list(judged), [losses.mean().item() for losses in judged.values()], x="held-out loss", best="low")

# %% [markdown]
# That share of what rearrange first wins in a *short* training is a matter of the start: gradient descent no longer has to get through three random channels. (Another seed draws another convolution, and another share.) Only the rest can be for the argument about information. The paper trains on CIFAR-10 for 500,000 steps, in which a bad start has time to be forgotten. Its gains may have other reasons than ours. DWConv too may have helped U-ViT round its bad start; exercise 4 can tell.
#
# A change to the architecture nearly always changes the start as well.
#
# ## How far does each part see?
#
# Notebook 08 measured sight with gradients. The **influence** of an input pixel is the squared derivative of one output pixel with respect to it, summed over colours. Do it for one layer at a time first. Everything has random weights: patches of 2 go in, one layer works (with a shortcut around it, as in a block), and a linear map makes pixels again, so that only the layer is seen. The two heads come without a layer.

# %%
def influence(f, x, row, column):
    """How strongly each input pixel moves the output pixel at (row, column): a map (H, W) that sums to 1."""
    x = x.clone().requires_grad_()
    total = 0
    for value in f(x)[:, :, row, column].sum(dim=0):  # red, green and blue
        total += torch.autograd.grad(value, x, retain_graph=True)[0].square().sum(dim=(0, 1))
    return total / total.sum()

def shades(maps):
    """Grey pictures on a logarithmic scale: black the largest influence, pale a 100,000th of it."""
    return torch.stack([0.85 - 1.85 * (1 + (m / m.max()).log10() / 5).clamp(min=0) for m in maps])[:, None].cpu()

# %% [markdown]
# `shades` draws such maps. Now each part alone.

# %%
torch.manual_seed(0)
embed, plain_head = nn.Conv2d(3, dim, 2, stride=2), LinearHead(dim, 2, 3, grid, conv=False)

def alone(layer=None, head=plain_head):
    def f(x):
        tokens = embed(x).flatten(2).transpose(1, 2)
        if layer is not None:
            extra = torch.zeros(len(x), 1, dim)
            tokens = tokens + layer(F.layer_norm(torch.cat([extra, tokens], dim=1), (dim,)))[:, 1:]
        return head(tokens)
    return f

parts = {"MLP": alone(layers["MLP"]), "attention": alone(layers["attention"]), "DWConv-FFN": alone(ffn),
         "linear first": alone(head=heads["linear first"][0]), "rearr. first": alone(head=heads["rearrange first"][0])}
x = torch.randn(4, 3, 16, 16)
seen = {name: influence(f, x, 9, 8) for name, f in parts.items()}
print({name: f"{(m > 0).sum()} pixels" for name, m in seen.items()})
assert [(m > 0).sum().item() for m in seen.values()] == [4, 256, 36, 16, 16]
plots.grid(shades(seen.values()), titles=list(seen), scale=8)

# %% [markdown]
# The output pixel asked is at row 9, column 8, in the lower left corner of its patch. The MLP sees its own patch. Attention sees everything, faintly and evenly: it cannot tell near from far. DWConv-FFN sees 3 by 3 patches. The heads see the patches that their 3 by 3 pixels touch, here four.
#
# A whole network has five blocks, so it *could* see everything. What does it use? Take your four, on unseen emoji, and ask for the predicted clean pixel. The curves show the share of the influence that comes from beyond the asking patch and its eight neighbours.

# %%
def spoiled(model, t, num=24 if run.tier != "smoke" else 8):
    x0 = unseen.images()[100 : 100 + num].to(run.device)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)).to(run.device)
    return model.forward_process(x0, t, eps)

def sight(model, t):
    """The influence on the predicted clean pixel (9, 8)."""
    return influence(lambda x: model.denoise(x, t).x0, spoiled(model, t), 9, 8).cpu()

pictured = (0.1, 0.5, 0.9)
columns = {"U-ViT, untrained": fresh["U-ViT"], "IU-ViT, untrained": fresh["both: IU-ViT"], **trained}
rows = [shades([sight(model, t) for t in pictured]) for model in columns.values()]
display(plots.filmstrip(torch.stack(rows, dim=1), [f"t = {t}" for t in pictured], rows=list(columns), scale=5))

def beyond(m, row=9, column=8, p=2):
    """The share from farther than the 3 x 3 patches around the asking one."""
    i, j = (torch.arange(len(m)) // p - k // p for k in (row, column))
    return m[(i.abs()[:, None] > 1) | (j.abs()[None] > 1)].sum().item()

ask = levels if run.tier != "smoke" else [0.15, 0.85]
shares = {name: [beyond(sight(model, t)) for t in ask] for name, model in trained.items()}
plots.lines({name: (ask, values) for name, values in shares.items()}, x="t", y="share from beyond 3 x 3 patches")

# %% [markdown]
# Look at the first two rows. Before any training U-ViT sees little more than the patches its last convolution touches, while IU-ViT sees a wide bell: five DWConv-FFNs reach five patches to each side. After training all four look close by when there is little noise, and mostly farther when there is more, as the task asks. The built-in convolution does not bind a network to its neighbours, since the attention beside it is untouched.
#
# Has the position table learned it? Here is the similarity (cosine) of one patch's position with all others: at the start, and after training.

# %%
def likeness(model, place=4 * grid + 4):
    table = F.normalize(model.network.pos_embed[0, 1:].detach(), dim=1)
    return (table @ table[place]).view(1, grid, grid).cpu()

tables = {"at the start": fresh["U-ViT"], **{name: trained[name] for name in ("U-ViT", "both: IU-ViT")}}
for name, model in tables.items():
    line = likeness(model)[0]
    near = (line[3:6, 3:6].sum() - 1) / 8
    print(f"{name:14} eight neighbours {near:.2f}, all others {(line.sum() - 1 - 8 * near) / (grid**2 - 9):.2f}")
plots.grid(torch.stack([-likeness(model) for model in tables.values()]), titles=list(tables), scale=14)

# %% [markdown]
# Dark is similar. In our runs U-ViT's table has learned a coarse map: the middle against the border. IU-ViT's has kept the noise it began with. Our reading: it has less need of a table, since the convolutions know the neighbours, and their zeros outside the grid even tell where the border is.
#
# ## Large patches
#
# The paper shows strong patch artefacts in its church pictures of 256 pixels, whose patches are 16 wide. The recorded runs with patches of 4 (16 tokens instead of 64) should show the same on a small scale. The measure is that of notebook 10: the mean absolute step between neighbouring pixels at the borders of patches, divided by that inside, and here once more by the same ratio of real emoji. Then 1 means no blocks, and the range of real sets tells how much chance there is in 32 pictures.

# %%
def steps_of(images, p):
    """Mean absolute step between neighbours (across the borders of p x p patches, inside the patches)."""
    steps = [images.diff(dim=axis).abs().transpose(2, axis).mean(dim=(0, 1, 3)) for axis in (2, 3)]  # (S - 1,) each
    steps = torch.stack(steps).mean(dim=0)
    border = torch.arange(1, len(steps) + 1) % p == 0
    return steps[border].mean().item(), steps[~border].mean().item()

def blockiness(images, p):
    (border, inside), usual = steps_of(images, p), steps_of(emoji.images(), p)
    return border / inside / (usual[0] / usual[1])

ramp = torch.arange(16.0) + torch.arange(16.0)[:, None]
assert steps_of(ramp.expand(1, 3, 16, 16), 4) == (1, 1)  # no blocks
lines, ratio = ["| patch 4 | step at borders | inside | blockiness | loss |", "|---|---|---|---|---|"], {}
rows = {name: runs[f"{key}-patch-4"]["samples"] for key, name in kinds.items()}
rows["unseen emoji"] = unseen.images()[100:]
for key, name in kinds.items():
    (border, inside), ratio[key] = steps_of(rows[name], 4), blockiness(rows[name], 4)
    loss = unseen_loss[f"{key}-patch-4"]
    lines.append(f"| {name} | {border:.2f} | {inside:.2f} | {ratio[key]:.2f} | {loss:.4f} |")
border, inside = steps_of(unseen.images(), 4)
real = [blockiness(unseen.images()[k : k + 32], 4) for k in range(0, 352, 32)]
lines.append(f"| unseen emoji | {border:.2f} | {inside:.2f} | {min(real):.2f} to {max(real):.2f} | |")
display(Markdown("\n".join(lines)))
plots.filmstrip([torch.stack([s[k] for s in rows.values()]) for k in range(8)], rows=list(rows), scale=5)

# %% [markdown]
# Read blockiness together with the loss; the two need not agree. In our runs of 600 steps with patches of 4, DWConv alone has a far lower ratio than U-ViT, and no lower loss: against the paper, it did not help by itself here. Its samples are full of grain: the borders are nearly as high as before, and the *inside* has become rough. A ratio can improve from below. Rearrange first lowers both steps, and only both changes together bring the ratio near that of real pictures as well. A head mixes one pixel beyond each border. When patches grow, this rim shrinks in proportion: at $p = 2$ every pixel lies at a border, at $p = 16$ fewer than a quarter do. The paper tries a wider model and a smaller patch.
#
# ## Two ways to listen to a text
#
# With text, each image token must also ask the words. GLIDE did it with one attention: the keys and values of the words are joined with those of the image, in *one* softmax. IU-ViT has two layers, self-attention and then **cross-attention** to the text, each with a softmax of its own. The paper reports that the joint kind optimised worse.
#
# What is the difference? In one head, for a query $q$ of $c$ channels, write $S_T = \sum_{j\in\text{text}} e^{q\cdot k_j/\sqrt c}$ for the keys $k_j$ of the words, and $S_I$ for the image alike. Then the joint attention is
#
# $$\text{joint} = s\,A_T + (1 - s)\,A_I, \qquad s = \frac{S_T}{S_T + S_I},$$
#
# where $A_T$ and $A_I$ are what separate softmaxes would give. So joint attention is cross- and self-attention, mixed by a share $s$ that the tokens fight for. Check it, on the package's own layer.

# %%
def split(x, heads=4):
    return x.unflatten(2, (heads, -1)).transpose(1, 2)  # (B, heads, N, d / heads)

torch.manual_seed(0)
joint, words, image = JointAttention(dim, 4, bias=False), torch.randn(2, 7, dim), torch.randn(2, 64, dim)
with torch.no_grad():
    q, k_image, v_image = map(split, joint.qkv(image).chunk(3, dim=2))
    k_text, v_text = map(split, joint.text_kv(words).chunk(2, dim=2))
    scores_text, scores_image = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5 for k in (k_text, k_image))
    a_text, a_image = scores_text.softmax(3) @ v_text, scores_image.softmax(3) @ v_image
    share = (scores_text.logsumexp(3) - scores_image.logsumexp(3)).sigmoid()[..., None]  # (B, heads, N, 1)
    mixed = share * a_text + (1 - share) * a_image
    assert torch.allclose(joint.proj(mixed.transpose(1, 2).flatten(2)), joint(image, words), atol=1e-5)

    cross = CrossAttention(dim, 4, bias=False)
    q, (k_text, v_text) = split(cross.q(image)), map(split, cross.kv(words).chunk(2, dim=2))
    answer = F.softmax(q @ k_text.transpose(2, 3) / q.shape[3] ** 0.5, dim=3) @ v_text
    assert torch.allclose(cross.proj(answer.transpose(1, 2).flatten(2)), cross(image, words), atol=1e-5)
print(f"equal; the seven words get {share.mean():.1%} of the joint attention, by number {7 / 71:.1%}")

# %% [markdown]
# At the start all scores are near zero, so $s$ is just the share by number: $L$ words among $L + N$ tokens, where $N$ is the number of image tokens. Separate cross-attention has no such competition. Its weights for the text sum to one, and its answer is *added*. See both as the text grows, for 64 patches and the time token.

# %%
lengths, asked = [1, 2, 4, 8, 16, 32, 64, 128], {"joint": [], "cross": []}
for kind in asked:
    torch.manual_seed(0)
    network = minidiff.create_model("iuvit_tiny", text_dim=32, text_attention=kind).eval()
    for length in lengths:
        text = torch.randn(1, length, 32, generator=torch.Generator().manual_seed(length))
        with torch.no_grad(), minidiff.record_attention(network) as maps:
            network(torch.randn(1, 3, 16, 16), torch.tensor([500.0]), text)
        to_text = [m[0][..., :length].sum(3).mean().item() for name, m in maps.items() if kind == "joint"
                   or "text" in name]
        asked[kind].append(sum(to_text) / len(to_text))
asked["L / (L + 65)"] = [length / (length + 65) for length in lengths]
curves = {name: (lengths, values) for name, values in asked.items()}
figure = plots.lines(curves, x="words in the text, L", y="weight that goes to the text", log="x")
(axes,) = figure.axes
axes.lines[0].set(linestyle="none", marker="o")
axes.set_xticks(lengths, lengths)
axes.legend(axes.lines, list(curves), frameon=False)
display(figure)

for kind in ("joint", "cross"):
    with torch.device("meta"):
        network = minidiff.create_model("iuvit_t2i_64", text_attention=kind)
    whole = minidiff.summary(network, y=torch.empty(1, 256, 1024))
    print(f"{kind}: {whole.parameters / 1e6:.0f} M weights, {whole.flops / 1e9:.0f} GFLOP at full size, 256 words")

# %% [markdown]
# The joint attention lies on the share by number. A short prompt has a faint voice, until training makes it louder. That may be why it optimised worse: our reading, for nothing was trained here. The separate layers have their price in weights and work.
#
# ## What the paper leaves open
#
# These are choices of the package, listed in `minidiff/backbones/iuvit.py` as well:
#
# - **Widths and depths.** 13 layers (CIFAR-10) and 17 (text) are printed. The depth for churches and the widths of 512, 1408, 1536, 2048 and 1024 follow from the totals. Heads are printed for text only, 16; the others (64 channels each, as there) are a guess, and no total can tell.
# - **The order inside the FFN.** The drawing attaches "GELU, LN" to both gaps. Their order, whether the norms have scale and shift (ours have not), whether there is a shortcut round the convolution: open.
# - **The time token in the FFN.** It has no place on the grid. Ours passes by.
# - **The time.** Two linear maps of width $d$ fit the totals. They start as PyTorch draws them.
# - **Learning rates and batches** of the four unconditional models, and the FID on CelebA, could not be found.
#
# ## What the paper found, what you measured

# %%
def claim(text, key):
    patch_4 = unseen_loss[f"{key}-patch-4"] / unseen_loss["mlp-linear-patch-4"]
    return f"| {text} | {unseen_loss[key] / base:.2f} x U-ViT's loss at patch 2, {patch_4:.2f} x at patch 4 |"

lines = [
    "| what the paper found | here |", "|---|---|",
    claim("DWConv-FFN helps by itself (CIFAR-10)", "dwconv-linear"),
    claim("rearrange first helps by itself (CIFAR-10)", "mlp-rearrange"),
    claim("both together are best (CIFAR-10, FID 2.56; U-ViT's own paper 3.11)", "dwconv-rearrange"),
    f"| | luck: {luck[0]:.0%} with U-ViT's last convolution, {luck[1]:.0%} without |",
    f"| (not in the paper) a better start of U-ViT's convolution | {start_alone:.0%} of rearrange first's gain, "
    f"{each} steps |",
    f"| strong patch artefacts at patch 16, 256 pixels | blockiness at patch 4: {ratio['mlp-linear']:.2f} U-ViT, "
    f"{ratio['dwconv-rearrange']:.2f} IU-ViT |",
    "| linear first loses information | 12 against 48 directions of a token reach the picture |",
    f"| 45, 45, 442, 527, 935 and 307 M weights | {', '.join(f'{n / 1e6:.1f}' for n in counted.values())} M |",
    "| joined keys and values optimise worse than cross-attention | not trained; equal to a mixture |",
]
Markdown("\n".join(lines))

# %% [markdown]
# A ratio below 1 agrees with the paper. One seed, a small network, short trainings: take directions, not digits. A gap the size of luck decides nothing.
#
# ## Exercises
#
# **1. The price of a head (nearly a one-liner).** From which patch size on is rearrange first the cheaper one? Write the operations *per token* of both heads, each multiplication and each addition counted, biases not.

# %% tags=["exercise"] name="head_cost"
def head_cost(dim, p):
    """Operations per token: (linear first with its 3 x 3 convolution, rearrange first)."""
    ...  # your code

# %% [markdown]
# The check knows what is easily forgotten.

# %%
exercises.check_head_cost(head_cost)

# %% [markdown]
# **2. A depth-wise convolution is nine shifted copies.** Write it without `conv2d`: each output is a sum of nine shifted grids, each times one number a channel. The first `extras` tokens pass unchanged.

# %% tags=["exercise"] name="dwconv_by_shifts"
def dwconv_by_shifts(x, weight, bias, extras):
    """x (B, extras + side^2, C), weight (C, 1, 3, 3), bias (C,) -> the shape of x."""
    ...  # your code

# %% [markdown]
# The check looks at borders, directions and the extra tokens.

# %%
exercises.check_dwconv_by_shifts(dwconv_by_shifts)

# %% [markdown]
# **3. The share of a padded text.** Texts of a batch are padded to one length; `mask` is True for words, False for padding. How strongly does each query of a joint attention listen to the *words*? Return $s$, safe for scores in the hundreds, and 0 for a text without any word.

# %% tags=["exercise"] name="text_share"
def text_share(q, k_text, k_image, mask):
    """q, k_image (B, heads, N, c), k_text (B, heads, L, c), mask (B, L) bool -> s (B, heads, N)."""
    ...  # your code

# %% [markdown]
# The check tries small and very large scores, and an empty text.

# %%
exercises.check_text_share(text_share)

# %% [markdown]
# **4. A project.** Is it the *convolution* in DWConv-FFN that helps, or the two norms that came with it? Set the kernels to the identity (`nn.init.dirac_(ffn.dwconv.weight, groups=len(ffn.dwconv.weight))`), freeze them with `requires_grad_(False)`, and train beside the four networks of this notebook. Write down first what you expect. Then let the kernels learn from that start, and compare a third time. At last give "+ DWConv" the identity start of the *head*: what is left of its gain?
#
# ## What you learned
#
# - Attention and MLP treat patches as a set. What they know of neighbours they learn.
# - DWConv-FFN adds a 3 by 3 kernel for each channel: $40\,d$ weights a block, about one per cent at $d = 512$. Rearrange first lets the last convolution see features instead of finished pixels, and its price does not grow with the patch.
# - Equal steps, equal operations and equal time are three budgets. State which one you mean.
# - A new layer brings a new start. Give the old layer a good start as well.
# - Joint attention is self-attention and cross-attention, mixed by a share they compete for.
#
# ## Where to read on
#
# - The paper of IU-ViT, arXiv 2212.13771. Its second half, ASCEND, is the subject of [notebook 15](15_ascend.ipynb).
# - Bao et al., *All are worth words*, 2023, arXiv 2209.12152: the trunk.
# - Nichol et al., *GLIDE*, 2022, arXiv 2112.10741: keys and values of text and image joined.
# - Luo, Li, Urtasun, Zemel, *Understanding the effective receptive field in deep convolutional neural networks*, 2016, arXiv 1701.04128.
#
# Next: [notebook 12](12_dit.ipynb), *DiT: conditioning by modulation*.
