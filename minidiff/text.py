"""Text for networks: so far words as numbers, with a vocabulary taken from the captions of a data set."""

import re
from collections import Counter

import torch

from minidiff.errors import check_whole

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
        _refuse_string(captions)
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
        _refuse_string(texts)
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


def _refuse_string(texts):
    """Raise ValueError for one string, whose letters would be taken for texts, and for what holds no texts."""
    if isinstance(texts, str) or not hasattr(texts, "__iter__"):
        raise ValueError(f"texts must be a list of strings, got {texts!r}; one text is [text]")
