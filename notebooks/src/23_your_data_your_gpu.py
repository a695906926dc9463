# %% [markdown]
# # 23 Your data, your GPU
#
# After this notebook you can take a folder of your own pictures to a trained model that others can load, on the machine that you have, and say beforehand what a larger one would give you.
#
# Run time: about one minute on a CPU with two idle cores; expect three on a T4 or a big GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - make a data set of any folder, and find the files in it that are no pictures,
# - train with a run folder, kill the training, and see it go on,
# - add up the memory of a training run by hand, and compare with what is measured,
# - measure what accumulation, checkpointing, half precision and the compiler give, and what they take,
# - train in two processes, and get the weights of one,
# - read the message of a run that broke, and find the picture that broke it,
# - share a model, and move it to diffusers.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## A folder of pictures
#
# You need no format. A folder is a data set: each subfolder is a class, and a text file beside a picture, of the same name, holds its caption. Set `pictures` to such a folder of your own, with a hundred pictures or more. On Colab, mount your Drive and keep both pictures and runs there, since Colab forgets everything else.
#
# Until then, the next cell makes one from emoji that come with the package: 64-pixel png files of faces, flags and hearts.

# %%
import tempfile
from pathlib import Path

import torch
from PIL import Image
from minidiff.images import pixels

place = tempfile.TemporaryDirectory(prefix="minidiff-", ignore_cleanup_errors=True)
home = Path(place.name)  # all that this notebook writes goes here, and is gone when it ends
pictures = home / "pictures"  # put yours here:  pictures = Path("my/holidays"), and leave out the loop
shipped = minidiff.load_dataset("emoji", size=64)
images, kinds = shipped.images(), [shipped.classes[label] for label in shipped.labels]
wanted = {"faces": ("Smileys & Emotion", "face"), "flags": ("Flags", "flag"), "hearts": ("Smileys & Emotion", "heart")}
for name, (kind, word) in wanted.items():
    (pictures / name).mkdir(parents=True)
    fitting = [k for k, caption in enumerate(shipped.captions) if kinds[k] == kind and word in caption]
    for k in [k for k in fitting if word == "face" or "face" not in shipped.captions[k]][:100]:
        path = pictures / name / f"{k:04}.png"
        Image.fromarray(pixels(images[k])[0]).save(path)
        path.with_suffix(".txt").write_text(shipped.captions[k], encoding="utf-8")

data = minidiff.load_dataset("folder", path=pictures, size=16)
some = range(0, len(data), -(-len(data) // 12))
print(f"{len(data)} pictures of {', '.join(data.classes)}; a record is {data[0].image.shape}, {data[0][1:]}")
plots.grid(torch.stack([data[k].image for k in some]), columns=6, titles=[data.captions[k] for k in some])

# %% [markdown]
# Look at what the network will see, not at your files. Sixteen pixels keep a grin and lose the eyelashes. A wide picture loses its sides, for the loader takes the middle square.
#
# Real folders hold grey and transparent pictures, 16-bit scans, photographs that lie on their side. And they hold files that are no pictures, a download cut in half, or an error page that calls itself jpg. Make one of each.

# %%
import warnings

odd, wide = home / "odd", Image.new("RGB", (192, 64))
odd.mkdir()
for k in range(3):
    face = Image.open(data.files[k * (len(data) // 5)]).convert("RGB").resize((64, 64))
    wide.paste(face, (64 * k, 0))
clear, lying = face.copy(), Image.Exif()
clear.putalpha(Image.linear_gradient("L").resize((64, 64)))
lying[0x0112] = 6  # EXIF: the camera was turned
sixteen = Image.fromarray(torch.linspace(0, 65535, 64).expand(64, 64).numpy().astype("uint16"))
ones = dict(grey=face.convert("L"), seethrough=clear, sideways=face.rotate(90), sixteen=sixteen, wide=wide)
for name, picture in ones.items():
    picture.save(odd / f"{name}.png", **({"exif": lying} if name == "sideways" else {}))
display(plots.grid(minidiff.load_dataset("folder", path=odd, size=64).in_memory().images(), titles=list(ones)))

(odd / "half.png").write_bytes((odd / "wide.png").read_bytes()[:500])
(odd / "page.jpg").write_text("<html>404 not found</html>")
with warnings.catch_warnings(record=True) as said:
    kept = minidiff.load_dataset("folder", path=odd, size=64, check="whole", broken="skip")
print(f"{len(kept)} are left. {str(said[0].message).replace(str(home), '')}\n")
try:
    everything = [*minidiff.load_dataset("folder", path=odd, size=64)]
except ValueError as error:
    print(str(error).replace(str(home), ""))

# %% [markdown]
# The odd ones come out right: upright, on white, in three channels, at full range. The first broken one ends the run, with its name and what it is. With `broken="skip"` the run goes on without them, and counts them. `check="whole"` looks before the training begins, not at three in the morning.
#
# ## One script for everything
#
# Write the training as a script. This notebook will import it, a terminal can start it, two processes will run it, and so could a cluster, without a changed line. Its argument is a list of runs in JSON, which it does one after the other.

# %%
(home / "train.py").write_text('''"""python train.py '[{"pictures": "my/pictures", "folder": "runs/1", "steps": 99}]'"""
import json
import sys
import torch
import minidiff
from minidiff.training import Trainer


def prepare(pictures, network="ddpm_tiny", size=16, **options):
    data = minidiff.load_dataset("folder", path=pictures, size=size, in_memory=True, broken="skip")
    torch.manual_seed(0)  # all processes begin with the same weights
    network = minidiff.create_model(network, num_classes=len(data.classes))
    diffusion = minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, size, size))
    return Trainer(diffusion, data, **options)


if __name__ == "__main__":
    for options in json.loads(sys.argv[1]):
        prepare(**options).run()
''')
steps = budget("the run", smoke=12, cpu=480, gpu=4000, seconds_per_step=0.07)
options = dict(pictures=str(pictures), folder=str(home / "run"), device=str(run.device), steps=steps, progress=False,
               batch_size=8 if run.tier == "smoke" else 32, lr=2e-3, warmup=steps // 10, ema=0.99, p_uncond=0.1,
               save_every=steps // 6, sample_every=steps // 6, log_every=max(1, steps // 60), seed=0,
               sampling=dict(num=12, steps=2 if run.tier == "smoke" else 15, guidance=2.0))

# %% [markdown]
# A run has a **folder**; to keep yours, give `folder` a place outside of `home`, which is gone when the notebook ends. In it are the newest checkpoints, `log.csv`, and sheets of samples. A checkpoint holds the weights, their averages and the optimiser's moments, in one file that is written under another name and then renamed: it is there as a whole, or not at all.
#
# Does that hold? Start the script as a process of its own, wait for a checkpoint, and kill it. `SIGKILL` is what a full memory or an impatient cluster sends: no Python code runs any more, no file is closed.

# %%
import json
import os
import subprocess
import sys
import time

environment = os.environ | {"PYTHONPATH": str(Path(minidiff.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def start(*command):
    return subprocess.Popen([sys.executable, *command], cwd=home, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


victim, folder = start("train.py", json.dumps([options])), Path(options["folder"])
while not [*folder.glob("checkpoint-*.safetensors")] and victim.poll() is None:
    time.sleep(0.02)
time.sleep(0.3)  # it trains on
victim.kill()  # on Linux and macOS this is SIGKILL
print(f"the process ended with {victim.wait()}; it left")
for file in sorted(path for path in folder.rglob("*") if path.is_file()):
    print(f"  {file.relative_to(folder)}  {file.stat().st_size:,} bytes")

# %% [markdown]
# Now the same call in this notebook. It finds the checkpoint, sweeps up what was half written, and goes on to the end. Draw the log.

# %%
sys.path.insert(0, str(home))
import train
from minidiff.training import read_log

trainer = train.prepare(**options)
print(f"going on after step {trainer.history.step} of {steps}")
history = trainer.run()
print(history)
log = read_log(folder)
assert log["step"] == sorted(set(log["step"])) and log["step"][-1] == steps


@plots.quiet
def draw(log, columns):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(columns), figsize=(3.1 * len(columns), 2.6))
    for ax, (column, name) in zip(axes, columns.items()):
        ax.plot(log["step"], log[column])
        ax.set(title=name, xlabel="step", ylim=(0, None))
    return figure


draw(log, {"loss": "loss", "lr": "learning rate", "gradient_norm": "norm of the gradient"})

# %% [markdown]
# The log has no gap and no step twice. A checkpoint holds no state of a random generator. The order of the pictures, the noise and the times are functions of the seed and the step, so the steps after a kill are those that would have been. The section on two processes proves it.
#
# The sheets show what the log cannot: the averaged model during the run, a column for each class. Then come samples of the finished model, and below each the training picture that lies nearest.

# %%
sheets = [Image.open(path).convert("RGB") for path in sorted((folder / "samples").glob("*.png"))]
strip = [torch.frombuffer(bytearray(s.tobytes()), dtype=torch.uint8).view(s.height, s.width, 3) for s in sheets]
strip = torch.nn.functional.pad(torch.stack(strip).permute(0, 3, 1, 2) / 127.5 - 1, (12, 12, 0, 0), value=1.0)
names = [f"step {int(path.stem[5:])}" for path in sorted((folder / "samples").glob("*.png"))]
display(plots.grid(strip, columns=3, titles=names, scale=1))

known = data.in_memory().images()
y = [k % len(data.classes) for k in range(9)]
drawn = minidiff.sample(history.ema, 9, y=sorted(y), guidance=2.0, progress=False, seed=1,
                        steps=2 if run.tier == "smoke" else 30).cpu()
gap = torch.cdist(drawn.flatten(1), known.flatten(1))
among = torch.cdist(known.flatten(1), known.flatten(1)).fill_diagonal_(torch.inf).amin(1)
print("median distance to the nearest other training picture: "
      f"{gap.amin(1).median():.1f} from a drawn one, {among.median():.1f} from a training picture")
plots.filmstrip(torch.stack([drawn, known[gap.argmin(1)]], dim=1), rows=["drawn", "nearest"])

# %% [markdown]
# With a few hundred pictures, long training ends in **memorising**: the two rows become the same, and the first distance falls towards 0, far below the second. Look there first when samples seem too good. More pictures help, and so does an earlier stop, or `flip=True`, which mirrors pictures as they are read (leave out `in_memory=True` then).
#
# ## Where the memory goes
#
# "Out of memory" is arithmetic, and you can do it on paper. For each weight, in float32, a training run holds
#
# $$\underbrace{4}_{\text{weight}} + \underbrace{4}_{\text{gradient}} + \underbrace{4 + 4}_{\text{moments of Adam}} + \underbrace{4}_{\text{average}} = 20\ \text{bytes}.$$
#
# Count it on the trainer of just now.

# %%
def size_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


model = trainer.diffusion
batch, labels = known[:16].to(run.device), data.labels[:16].to(run.device)
model.loss(batch, labels).mean().backward()
weights = sum(weight.numel() for weight in model.parameters())
held = {"weights": size_of(model.parameters()), "gradients": size_of(w.grad for w in model.parameters()),
        "moments": size_of(v for state in trainer.optimisation.optimizer.state.values() for v in state.values()),
        "averages": size_of(trainer.ema.model.parameters())}
model.zero_grad()
for name, size in held.items():
    print(f"{name:10}{size / 1e6:6.2f} MB, {size / weights:.3f} bytes a weight")
if run.device.type == "cuda":
    print(f"peak on the GPU so far: {torch.cuda.max_memory_allocated() / 1e6:.0f} MB, with activations and work space")
print(f"{weights:,} weights, {sum(held.values()) / weights:.3f} bytes each")
assert abs(sum(held.values()) / weights - 20) < 0.01

# %% [markdown]
# The thousandth too many is Adam's count of steps, kept once for each tensor. The second part of the bill is what the forward pass must keep for the backward pass, the **activations**. They grow with the batch.
#
# Take a transformer block on tokens of width $d$, and ask of each operation what its derivative needs. In units of $d$ numbers a token: each norm keeps its input (1), each linear map its input (1, in the MLP 1 and 4), attention its queries, keys and values (3) and its output, which the projection needs anyway (1), the GELU its input (4). That is $1 + 1 + 3 + 1$ for the first half and $1 + 1 + 4 + 4$ for the second, 16 in all. Mean and deviation of each norm and one number a head from attention are small.
#
# PyTorch tells what it keeps: `saved_tensors_hooks` calls a function with each tensor. Count each piece of memory once, without the weights.

# %%
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(module, *inputs, amp=False, found=None):
    """Bytes that the forward pass keeps for the backward pass, weights not counted; `found` is filled meanwhile."""
    own, found = {w.untyped_storage()._cdata for w in module.parameters()}, {} if found is None else found

    def keep(tensor):
        if tensor.untyped_storage()._cdata not in own:
            found[tensor.untyped_storage()._cdata] = tensor.untyped_storage()  # held, so that no address comes twice
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        module(*inputs)
    return sum(storage.nbytes() for storage in found.values())


block = minidiff.create_model("uvit_cifar10", depth=2).in_blocks[0]
x = torch.randn(4, 257, 512, requires_grad=True)  # (B, N, d)
by_hand, more = 16 * x.numel() * 4, (2 * 2 + 8) * 4 * 257 * 4
print(f"by hand {by_hand:,} bytes, with the small ones {by_hand + more:,}, measured {saved_bytes(block, x):,}")
assert abs(saved_bytes(block, x) / (by_hand + more) - 1) < 0.01

# %% [markdown]
# Sixteen it is. A GPU pays the same bill; `torch.cuda.max_memory_allocated()` shows a total above the sum, since operations need room to work in.
#
# ## Four ways to need less
#
# **Accumulation** cuts the batch into parts, adds up their gradients, and steps once. Since the loss is a mean, its gradient is the mean of the parts' gradients: the same step, for the memory of one part. **Checkpointing** keeps only what enters each block, and computes the rest again in the backward pass. Measure both with a small ASCEND on the CPU: bytes, processor time, and operations, as torch counts them in convolutions and matrix products.

# %%
import timeit

from torch.utils.flop_counter import FlopCounterMode

torch.set_num_threads(1)  # from here on all is small
torch.manual_seed(0)
ascend = minidiff.Diffusion(minidiff.create_model("ascend_tiny"), minidiff.schedules.cosine(), "v", shape=(3, 16, 16))
x0, count = known[:16], 1 if run.tier == "smoke" else 5
draws = dict(t=ascend.sample_times(16), eps=torch.randn(x0.shape))


def gradient(parts, checkpoint=False, amp=False):
    """The gradient of the mean loss over 16 pictures in so many parts, as one vector."""
    ascend.network.checkpoint = checkpoint
    ascend.zero_grad()
    for part in torch.arange(16).chunk(parts):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = ascend.loss(x0[part], **{key: value[part] for key, value in draws.items()}).mean()
        (loss / parts).backward()
    return torch.cat([w.grad.flatten() for w in ascend.parameters() if w.grad is not None])


def seconds(function, *arguments, **options):
    """Processor time of the quickest of some calls, which other programs disturb least."""
    return min(timeit.repeat(lambda: function(*arguments, **options), timer=time.process_time, number=1, repeat=count))

# %% [markdown]
# Each way must give the gradient of the plain pass.

# %%
ways = {"plain": (1, False), "accumulate=2": (2, False), "accumulate=4": (4, False), "checkpointing": (1, True),
        "both": (4, True)}
plain, cost = gradient(1), {}
for name, (parts, checkpoint) in ways.items():
    assert torch.allclose(gradient(parts, checkpoint), plain, atol=1e-5 * plain.abs().max().item(), rtol=1e-4), name
    with FlopCounterMode(display=False) as counter:
        gradient(parts, checkpoint)
    kept = saved_bytes(ascend.network, x0[:16 // parts], draws["t"][:16 // parts])
    cost[name] = kept, counter.get_total_flops(), seconds(gradient, parts, checkpoint)
    print(f"{name:14}{kept / 1e6:6.1f} MB, {cost[name][1] / 1e9:.2f} GFLOPs, {cost[name][2]:.2f} s")


@plots.quiet
def bars(cost):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 3, figsize=(9.2, 2.4), sharey=True)
    for ax, title, values in zip(axes, ("activations kept", "operations", "processor time"), zip(*cost.values())):
        ax.barh(list(cost), [value / values[0] for value in values])
        ax.set(title=f"{title}, plain = 1", ylim=(len(cost) - 0.5, -0.5))
    return figure


bars(cost)

# %% [markdown]
# All five are the same step. Accumulation pays nothing in operations, but small parts make poor use of a machine, as the time shows; a GPU minds even more. Checkpointing pays a second forward pass, and since a backward pass costs about two forward passes, that should be a third more operations. It is less, since torch stops the second pass of a block as soon as it has all that the backward pass needs: the last layer of each block, whose result nobody asks for, is left out. What it keeps is not all that it needs: in the backward pass, one block at a time has its activations again. "What fits where" counts them.
#
# Say `Trainer(accumulate=4)` or `Trainer(checkpoint_activations=True)`. Every backbone of this course has the switch, `network.checkpoint`; a network of your own without it is refused, and told why.
#
# ### Half precision, and what it loses
#
# bfloat16 has the range of float32, but only 8 bits for the digits. Between 1 and 2 it knows 128 numbers. Have it add a thousandth, and an average with decay 0.999 follow a weight that moved from 0 to 1.

# %%
half = torch.bfloat16
print("1 + 0.001 =", (torch.tensor(1.0, dtype=half) + 0.001).item())
total = torch.zeros((), dtype=half)
for _ in range(2000):
    total += 0.01
print(f"2,000 hundredths, one by one: {total.item()}; with float32 to add in: "
      f"{torch.full((2000,), 0.01, dtype=half).sum(dtype=torch.float32).item():.3f}")

paths = {}
for name, dtype in {"float32": torch.float32, "bfloat16": half}.items():
    average, target, path = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype), []
    for _ in range(5000):
        average += (target - average) * 0.001
        path.append(average.item())
    paths[name] = (range(5000), path)
stuck = paths["bfloat16"][1][-1]
plots.lines(paths, x="step", y="the average (it should reach 1)")

# %% [markdown]
# Where the update is less than half the distance to the next number, the sum stays where it is. Weights, moments and averages are all such sums. So **mixed** precision keeps these in float32 and only computes in bfloat16: `Trainer(amp="bf16")`. fp16 has more digits and little range, so the loss has to be scaled (`amp="fp16"` does it); take it on a T4, which has no bf16.
#
# What does it bring here? And what does `torch.compile`, which writes code of its own for your network? Give the compiler a few lines that work number by number: a whole network keeps it busy for minutes on a CPU.

# %%
inputs, rounded = (x0, draws["t"]), (gradient(1, amp=True) - plain).norm() / plain.norm()
timing, kept = {}, {}
for amp in (False, True):
    timing[amp], kept[amp] = seconds(gradient, 1, amp=amp), saved_bytes(ascend.network, *inputs, amp=amp)
print(f"bf16 on this CPU: {timing[True] / timing[False]:.2f} x the time, {kept[True] / kept[False]:.2f} x the bytes "
      f"(with its copies of the weights), gradient off by {rounded:.1%}")


def modulate(x, shift, scale):
    return x + torch.tanh(x * (1 + scale) + shift) * torch.sigmoid(scale)


arguments, compiler = [torch.randn(256, 257, 128) for _ in range(3)], "not tried in the smoke tier"
if run.tier != "smoke":
    try:
        quick = torch.compile(modulate)
        begin, _, end = time.perf_counter(), quick(*arguments), time.perf_counter()
        one, two = seconds(modulate, *arguments), seconds(quick, *arguments)
        compiler = f"first call {end - begin:.0f} s, then {two * 1e3:.0f} ms instead of {one * 1e3:.0f} ms"
    except Exception as error:  # no C++ compiler on this machine
        compiler = f"not here ({type(error).__name__})"
print("compiled:", compiler)

# %% [markdown]
# Some CPUs have instructions for bfloat16, others simulate it. Either way the gain is small for a network of this size, which spends its time on many small operations. On a GPU with tensor cores it is the first thing to switch on. Compiling (`compile=True`) joins operations so that numbers make fewer journeys through memory. It costs minutes at the start and pays in long runs; turn it on last.
#
# ## What fits where
#
# Now do the arithmetic for a machine that you do not have. `uvit_cifar10` is the U-ViT for CIFAR-10, and `ascend_t2i_128` the text-to-image model of the ASCEND paper, which reports 590 million weights (ours has a few less). It is built on the `meta` device, where tensors have shapes and no memory. There torch may count the maps of attention, too, which its quick kernels never keep. With ASCEND's small windows that is one per cent; with the U-ViT it would be a third, so that one is real.
#
# Several GPUs work in one of two ways. With **DDP** (distributed data parallel), each holds everything and takes its share of the batch. With **FSDP** (fully sharded data parallel) on $n$ GPUs, each takes its share, too, but holds only an $n$-th of the 20 bytes, and puts whole weights together, block by block, when it needs them: add at least the largest block's weights and gradients, 8 bytes each.

# %%
from minidiff.layers import Text


def measured(name, device):
    """(weights, those of the largest block, [bytes a picture, the same with checkpointing])."""
    with torch.device(device):
        network = minidiff.create_model(name)
        x, time, dim = torch.zeros(1, *network.shape), torch.zeros(1), network.arguments["text_dim"]
        y = Text(torch.zeros(1, 77, dim), None, torch.zeros(1, 1024)) if dim else None
    blocks = [block for m in network.modules() if isinstance(m, torch.nn.ModuleList) for block in m]
    largest = max(sum(w.numel() for w in block.parameters()) for block in blocks)
    plain, found, calls = saved_bytes(network, x, time, y), {}, []
    network.checkpoint = True
    for block in blocks:
        block.register_forward_hook(lambda *call: calls.append((*call, sum(part.nbytes() for part in found.values()))))
    peak = saved_bytes(network, x, time, y, found=found)  # at the end of the forward pass
    for block, inputs, _, before in [*calls]:
        peak = max(peak, before + saved_bytes(block, *inputs))  # when this block is computed anew
    return sum(w.numel() for w in network.parameters()), largest, [plain, peak]


facts = {name: measured(name, device) for name, device in (("uvit_cifar10", "cpu"), ("ascend_t2i_128", "meta"))}
for name, (weights, _, each) in facts.items():
    print(f"{name}: {weights / 1e6:.0f} M weights, {weights * 20 / 1e9:.2f} GB for them, and for each picture "
          + ", with checkpointing ".join(f"{size / 1e9:.3f} GB" for size in each))

# %% [markdown]
# With checkpointing, the bytes a picture are those at the worst moment of the backward pass: what was kept up to a block, and all of that block. The table says how many pictures fit on **each** GPU at float32, if a tenth of its memory is lost to the driver and to gaps. Multiply by the number of GPUs for the whole batch.

# %%
from IPython.display import Markdown


def fixed_bytes(weights, largest, gpus, fsdp):
    return 20 * weights / gpus + 8 * largest if fsdp else 20 * weights


memories, rows = (16, 24, 40, 80), []
for name, (weights, largest, each) in facts.items():
    for size, kind in zip(each, ("", ", checkpointing")):
        for how, gpus in (("1 GPU, or DDP on any number", 1), ("FSDP on 8", 8), ("FSDP on 64", 64)):
            fixed = fixed_bytes(weights, largest, gpus, gpus > 1)
            fits = [max(0, int((0.9e9 * memory - fixed) // size)) for memory in memories]
            rows.append(f"| `{name}`{kind} | {how} | {fixed / 1e9:.2f} GB | {' | '.join(map(str, fits))} |")
display(Markdown("\n".join(["| network | how | weights and all | " + " | ".join(f"{m} GB" for m in memories) + " |",
                            "|---" * 7 + "|", *rows])))

weights, largest, each = facts["ascend_t2i_128"]
batches = [2**k for k in range(8)]
curves = {f"{how}{kind}": (batches, [(fixed_bytes(weights, largest, gpus, gpus > 1) + size * batch) / 1e9
                                     for batch in batches])
          for kind, size in zip(("", ", checkpointing"), each) for how, gpus in (("DDP", 1), ("FSDP on 64", 64))}
plots.lines(curves | {f"{m} GB": (batches, [m] * len(batches)) for m in (16, 80)}, log="xy",
            x="pictures on each GPU", y="GB on each GPU", title="ascend_t2i_128 in float32")

# %% [markdown]
# For the large model the activations are the trouble, not the weights. Checkpointing buys more pictures than dividing the weights among 64 GPUs does, and the more so the larger the card. FSDP pays where the 20 bytes a weight alone fill the card. bf16 about halves the activations, and adds a copy of the weights while they are used.
#
# ## Two processes
#
# Two processes on a CPU do what two GPUs do. `torchrun`, here under its long name, starts $n$ copies of the script and tells each its number. Each takes its part of the same batch, and after the backward pass the gradients are averaged over all. The mean of two means is the mean of the whole, so nothing else has to change.
#
# Start both kinds with one launch. While they run, train the same in this notebook, twice: once through, and once interrupted in step 14, to be resumed from the checkpoint of step 10.

# %%
import contextlib

small = dict(pictures=str(pictures), network="uvit_test", size=8, batch_size=16, steps=20, warmup=5, save_every=10,
             device="cpu", progress=False)
runs = [small | dict(folder=str(home / kind), parallel=kind, processes=2) for kind in ("ddp", "fsdp")]
launched = start("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py", json.dumps(runs))


def interrupt(step, history):
    if step == 14:
        raise KeyboardInterrupt


train.prepare(**small, folder=str(home / "one")).run()
with contextlib.suppress(KeyboardInterrupt):
    train.prepare(**small, folder=str(home / "resumed"), on_step=interrupt).run()
train.prepare(**small, folder=str(home / "resumed")).run()
output, _ = launched.communicate()
assert launched.returncode == 0, output[-3000:]

# %% [markdown]
# Compare the averaged weights and the losses.

# %%
from minidiff.training import read_averaged

ends = {name: read_averaged(home / name) for name in ("one", "resumed", "ddp", "fsdp")}
gaps = {name: max((ends[name][0][key] - value).abs().max().item() for key, value in ends["one"][0].items())
        for name in ends}
print("largest difference of a weight to one process:", {name: f"{gap:.1e}" for name, gap in gaps.items()})
assert gaps["resumed"] == 0 and gaps["ddp"] < 1e-5 and gaps["fsdp"] < 1e-5
try:
    train.prepare(**small, processes=2)
except ValueError as error:
    print(f"\n{error}")


@plots.quiet
def on_top(ends, styles=("-", "--", ":", "o")):
    import matplotlib.pyplot as plt
    figure, ax = plt.subplots(figsize=(6.2, 3.2))
    for width, (style, (name, (_, about))) in enumerate(zip(styles, ends.items())):
        ax.plot(range(1, 21), about["losses"], style, linewidth=6 - 1.5 * width, markersize=3, label=name)
    ax.set(xlabel="step", ylabel="loss", xticks=range(0, 21, 5))
    ax.legend(loc="lower left")
    return figure


on_top(ends)

# %% [markdown]
# Four runs, one curve. The interrupted run agrees to the last bit; the two processes add up in another order, hence the last digit. On a GPU an interrupted run may differ there, too, as some kernels add up in no fixed order. `processes=2` is a guard: started without its launcher, the script would train alone and call it a success.
#
# ## When the data no longer fit
#
# A million pictures neither fit into memory nor like to be a million files. **Shards** are tar files with a thousand pictures each, with caption and metadata beside them, in the format in which the large public collections are written. Reading is a stream: shuffled, divided among the processes, and with a position that says where it goes on. `keep=` filters by the metadata, broken samples are skipped and counted, and `cache_shards` writes what a frozen text encoder or autoencoder makes of them, once instead of in every epoch. A `Trainer` takes shards like any data set; there must be one for each process, or more.
#
# ## The cluster
#
# On eight machines with eight GPUs each, run the same line on each, with the first one's address. The shards are to hold text embeddings that `cache_shards` wrote, and `--out` is a folder on a disk that all machines share.
#
# ```bash
# torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint first-machine:29500 \
#     -m minidiff train ascend_t2i_128 --data "laion/{00000..09999}.tar" --out /shared/ascend \
#     --processes 64 --parallel fsdp --checkpoint-activations --workers 8
# ```
#
# `ascend_t2i_128` is a **recipe**: data, network, schedule, optimiser and sampler of a paper, by name. Not all of these were published. What is a guess says so, with its reason. Write shards of your pictures, read them, and print the recipe.

# %%
from minidiff.cli import main
from minidiff.datasets import write_shards
from minidiff.recipes import RECIPES

tars = write_shards(data, home / "shards", per_shard=64, format="png")
print(f"{len(tars)} shards of at most 64 pictures, {sum(tar.stat().st_size for tar in tars) / 1e3:.0f} kB")
shards = minidiff.load_dataset("shards", path=home / "shards", size=16, label="label", classes=data.classes)

stream = shards.stream(16, seed=0)
(first, labels, captions), position = next(stream)
(second, _, _), _ = next(stream)
parts = [next(shards.stream(16, seed=0, rank=rank, world=2))[0] for rank in (0, 1)]
assert torch.equal(torch.cat([part[0] for part in parts]), first)  # two processes read what one would have read
(again, _, _), _ = next(shards.stream(16, seed=0, position=json.loads(json.dumps(position))))
assert torch.equal(again, second)  # the position goes on with the very next batch
print(shards.report(position))
display(plots.grid(first[:12] / 127.5 - 1, columns=6, titles=captions[:12]))

main(["train", "ascend_t2i_128", "--show", "--out", "/shared/ascend"])
told = [recipe for recipe in RECIPES.values() if not recipe.guesses]
print(f"\n{len(RECIPES)} recipes; {len(told)} of them without a guess")

# %% [markdown]
# Each run of `minidiff train` writes its options to `config.json` in its folder, and `minidiff train --config FILE` repeats it. Try `minidiff train emoji_tiny`, or `minidiff train ddpm_tiny --data my/pictures --size 16 --labels`.
#
# ## When it breaks
#
# One day the loss is NaN. Plant one: a picture with a division by zero in it, as your own preprocessing might make it, that comes up in step 7.

# %%
from minidiff.training.data import shuffled

order = shuffled(len(known), 16, 0)  # step (0, 1, ...) -> the numbers of the pictures in its batch
spoilt = known.clone()
spoilt[order(6)[3]] /= 0
eight = torch.nn.functional.avg_pool2d(spoilt, 2)  # to the 8 pixels of the small network below
spoilt_data = minidiff.datasets.InMemory(eight, data.labels, data.captions, data.classes)
torch.manual_seed(0)
network = minidiff.create_model("uvit_test", num_classes=len(data.classes))
patient = minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, 8, 8))
try:
    minidiff.training.train(patient, spoilt_data, steps=20, batch_size=16, folder=home / "broken", progress=False)
except FloatingPointError as error:
    print(str(error).replace(str(home), ""))
assert all(weight.isfinite().all() for weight in patient.parameters())
suspects = order(6)
culprit = suspects[~spoilt[suspects].flatten(1).isfinite().all(1)]
print(f"\nstep 7 read the pictures {suspects.tolist()}; not finite: {[Path(data.files[k]).name for k in culprit]}")

# %% [markdown]
# Nobody looked at the loss in step 7, since looking makes a GPU wait. The step was still not taken, and the weights are the last good ones. All gradients are NaN, so the forward pass had gone wrong already, by its data or by a layer. Where only the backward pass overflows, in one layer, those after it keep finite gradients, and the message tells them apart. And as batches are a function of seed and step, you can ask which sixteen pictures those were.
#
# ## Give it away
#
# What you share is the averaged model, not the checkpoint, which holds moments that nobody needs. `save_shared` writes a folder with weights, configuration, samples, and a **model card** that says what the model is, what it was trained on, and under which licence. Fill in what only you know.

# %%
from minidiff.sharing import check_shared, save_shared

card = dict(dataset=dict(name="my emoji", pictures=len(data)), licence="apache-2.0", steps=history.step,
            seconds=history.seconds, batch_size=options["batch_size"], device=str(run.device), source=str(pictures),
            training=dict(lr=options["lr"], ema=options["ema"]), limits="Knows faces, flags and hearts, nothing else")
shared = save_shared(history.ema, home / "shared", card, pictures=drawn)
print(f"{check_shared(shared)}, {sum(f.stat().st_size for f in shared.iterdir()) / 1e6:.1f} MB")
print("\n".join((shared / "README.md").read_text(encoding="utf-8").splitlines()[:16]) + "\n...")
(shared / "log.csv").write_bytes((folder / "log.csv").read_bytes())
try:
    check_shared(shared)
except ValueError as error:
    print(f"\n{str(error).replace(str(home), '')}")

again = minidiff.from_pretrained(shared, device=run.device)
both = [minidiff.sample(one, 2, y=[0, len(data.classes) - 1], steps=2, progress=False) for one in (again, history.ema)]
assert torch.equal(*both) and str(home) not in (shared / "config.json").read_text(encoding="utf-8")

# %% [markdown]
# The path of your folder, planted as `source`, was taken out. `minidiff.sharing.push(shared, "you/my-emoji")` uploads the folder to the Hugging Face hub (after `hf auth login`): private unless you say otherwise, and nothing that is not on its list. Before you make it public, ask whether the pictures were yours to give, and if the model repeats them.
#
# Others may use diffusers. `export_diffusers` writes our DDPM U-Net as its `UNet2DModel`, with a scheduler. If diffusers is installed, walk the same path with both; else the picture shows ours alone.

# %%
import importlib.util
from minidiff.official.diffusers import export_diffusers
from minidiff.prediction import clip

moved = export_diffusers(history.ema, home / "diffusers")
print(*sorted(str(path.relative_to(moved)) for path in moved.rglob("*") if path.is_file()), sep="\n")
y = torch.tensor([0, 0, 1, 1, 2, 2], device=run.device) % len(data.classes)
x = minidiff.seeded_noise([(3, k) for k in range(6)])(torch.empty(6, 3, 16, 16)).to(run.device)
denoise, table = clip(minidiff.condition(history.ema.denoise, y)), history.ema.schedule
walks = {"minidiff": [*minidiff.samplers.ddim(denoise, table, x, minidiff.spacing(table, 20))][-1].x}
if importlib.util.find_spec("diffusers") and run.tier != "smoke":
    from diffusers import DDIMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(moved, subfolder="unet").to(run.device).eval()
    scheduler = DDIMScheduler.from_pretrained(moved, subfolder="scheduler")
    scheduler.set_timesteps(20)
    with torch.no_grad():
        for step in scheduler.timesteps:
            out = unet(x, step, class_labels=y).sample
            x = scheduler.step(out, step, x, use_clipped_model_output=True).prev_sample
    walks["diffusers"] = x
    print(f"largest difference after 20 steps: {(walks['minidiff'] - x).abs().max():.1e}")
    assert torch.allclose(walks["minidiff"], x, atol=1e-3)
plots.filmstrip(torch.stack([*walks.values()], dim=1).cpu(), rows=[*walks])

# %% [markdown]
# ## What people say, what you measured
#
# No paper this time, but what you will hear in every laboratory.

# %%
uvit, big = facts["uvit_cifar10"], facts["ascend_t2i_128"]
findings = [
    ("A model of 590 M weights needs 2.4 GB", f"to use it; to train it {20 * big[0] / 1e9:.1f} GB, and "
     f"{big[2][0] / 1e9:.1f} GB for each picture at 128 pixels"),
    ("You need FSDP for that", f"checkpointing saves {1 - big[2][1] / big[2][0]:.0%} of the activations; on 40 GB "
     f"{int((36e9 - 20 * big[0]) // big[2][1])} pictures fit on one GPU"),
    ("Checkpointing costs a third", f"{cost['checkpointing'][1] / cost['plain'][1] - 1:.0%} more operations, "
     f"{cost['checkpointing'][2] / cost['plain'][2] - 1:+.0%} time"),
    ("Accumulation is as good as a large batch", "the same gradient, asserted above, for "
     f"{cost['accumulate=4'][0] / cost['plain'][0]:.0%} of the activations"),
    ("bf16 is twice as fast", f"here {timing[True] / timing[False]:.2f} x the time; a GPU is another matter"),
    ("Just train in bf16", f"an average with decay 0.999 stops at {stuck:.2f} instead of 1"),
    ("More GPUs give other results", f"two processes: {max(gaps['ddp'], gaps['fsdp']):.0e} apart after 20 steps"),
    ("A killed run is lost", f"bit for bit the same weights (difference {gaps['resumed']:.0f})"),
]
Markdown("\n".join(["| what people say | what you measured |", "|---|---|", *(f"| {a} | {b} |" for a, b in findings)]))

# %% [markdown]
# Two processes agree with one because the Trainer divides a batch instead of adding to it: `batch_size` is always the whole one. Where it means "for each GPU", eight GPUs train with another batch, and the results do differ.
#
# ## Exercises
#
# **1. Choose what you train on (a line).** `load_dataset("shards", keep=...)` asks a function about the metadata of each sample. `about` is a dict such as `{"width": 512, "height": 300, "similarity": 0.31}`. Keep pictures whose shorter side has at least 256 pixels, and whose `similarity` to the caption is at least 0.28. Some have no `similarity`; keep these.

# %% tags=["exercise"] name="keep"
def keep(about):
    """about: the metadata, a dict -> whether to use the sample."""
    ...  # your code

# %% [markdown]
# The check asks about some pictures.

# %%
exercises.check_keep(keep)

# %% [markdown]
# **2. Make it fit.** A batch of `batch` pictures is to be trained on `gpus` GPUs with DDP, in `parts` passes each (`accumulate`). Write the smallest `parts` that fits. Each of the `weights` weights takes 20 bytes, each picture of a pass `per_picture` bytes. A batch must divide evenly among GPUs and passes, as every pass is of the same size. Return 0 if it cannot be done.

# %% tags=["exercise"] name="passes"
def passes(memory, weights, per_picture, batch, gpus):
    """memory: bytes of one GPU -> the smallest number of passes, or 0."""
    ...  # your code

# %% [markdown]
# Try it on `ascend_t2i_128` too: `passes(40e9, big[0], big[2][1], 1024, 8)` asks for eight GPUs of 40 GB, with checkpointing.

# %%
exercises.check_passes(passes)

# %% [markdown]
# **3. A recipe on your machine (a project).** A recipe with batch 1,024 is for a cluster. With a batch $k$ times smaller ($k < 1$ for a larger one), keep the number of pictures the same, in the whole run and in the warm-up. The gradient is noisier, so Adam wants a smaller learning rate: divide it by $\sqrt k$, the usual rule for Adam (for plain gradient descent it would be $k$). The decay of the average counts steps as well: $k$ new steps should forget as much as one old step did.

# %% tags=["exercise"] name="moved_to"
def moved_to(recipe, batch_size):
    """recipe: dict of steps, warmup, batch_size, lr, ema -> the same for another batch_size; steps are whole."""
    ...  # your code

# %% [markdown]
# The check goes both ways, to smaller and to larger batches.

# %%
exercises.check_moved_to(moved_to)

# %% [markdown]
# Now the project. Fill a folder with two hundred of your own pictures, and call `train.prepare` with it, with `size=32` if you have a GPU. Train once with a batch of 64 and once with the settings that `moved_to` gives for 16. Do the losses agree, drawn over pictures instead of steps? Look for memorised pictures, write the card, and send the folder to a friend, who should need no help to draw from it.
#
# ## What you learned
#
# - A folder is a data set. Look at what the network sees, and check it before the run, not during it.
# - A run is a folder too. What is written whole can be killed at any time, and what is random by (seed, step) resumes exactly.
# - Training takes 20 bytes a weight, and activations for each picture. Both can be counted before you rent anything.
# - Accumulation trades nothing but patience, checkpointing operations, bf16 digits, FSDP messages between GPUs. Sums stay in float32.
# - Many processes train what one would, if the batch is divided and not multiplied.
# - Share averages and a card, not checkpoints.
#
# ## Where to read on
#
# - Chen et al., *Training deep nets with sublinear memory cost*, 2016, arXiv 1604.06174: checkpointing.
# - Micikevicius et al., *Mixed precision training*, 2017, arXiv 1710.03740.
# - Zhao et al., *PyTorch FSDP*, 2023, arXiv 2304.11277. Rajbhandari et al., *ZeRO*, 2019, arXiv 1910.02054: where the idea comes from.
# - Mitchell et al., *Model cards for model reporting*, 2018, arXiv 1810.03993.
# - `minidiff/training/trainer.py`: the loop of this notebook, to be read in a sitting.
#
# This was the last notebook. You have a model of your own; the next one is not in this book.
