"""Words as numbers: what a tokenizer splits, numbers, pads, cuts and refuses."""

import pytest
import torch

from minidiff.text import PADDING, UNKNOWN, WordTokenizer, split_words


@pytest.mark.parametrize("text, words", [
    ("Red heart", ["red", "heart"]),
    ("kiss: man, man", ["kiss", "man", "man"]),
    ("one o\u2019clock, Men's room", ["one", "oclock", "mens", "room"]),
    ("medium-dark skin_tone!", ["medium", "dark", "skin", "tone"]),
    ("Pi\u00f1ata 100 & S\u00e3o Tom\u00e9", ["pi\u00f1ata", "100", "s\u00e3o", "tom\u00e9"]),
    (" ... ", []),
])  # fmt: skip
def test_words(text, words):
    assert split_words(text) == words


def test_numbers_padding_and_mask():
    tokenizer = WordTokenizer(["heart", "red", "cat"], length=3)
    tokens, mask = tokenizer(["red heart", "Cat, cat!", "blue cat", "", "red red red heart"])
    assert tokens.dtype == torch.int64 and mask.dtype == torch.bool
    assert tokens.tolist() == [[3, 2, 0], [4, 4, 0], [1, 4, 0], [0, 0, 0], [3, 3, 3]]
    assert torch.equal(mask, tokens != PADDING) and torch.equal(mask, tokenizer.mask(tokens))
    assert len(tokenizer) == 5 and tokens.max() < len(tokenizer) and UNKNOWN == 1
    assert tokenizer([])[0].shape == (0, 3) and tokenizer(("cat",))[0].shape == (1, 3)


def test_the_vocabulary_comes_from_captions_in_an_order_that_does_not_depend_on_theirs():
    captions = ["red heart", "heart suit", "Cat: face"]
    tokenizer = WordTokenizer.from_captions(captions)
    assert tokenizer.words == ["cat", "face", "heart", "red", "suit"]
    assert tokenizer.words == WordTokenizer.from_captions(captions[::-1]).words
    assert WordTokenizer.from_captions(captions, least=2).words == ["heart"]
    assert tokenizer.unknown("red dog and cat") == ["dog", "and"]


def test_it_can_be_made_again_from_plain_values():
    tokenizer = WordTokenizer(["heart", "red", "pi\u00f1ata"], length=4)
    again = WordTokenizer(**tokenizer.arguments)
    assert again.words == tokenizer.words and again.length == 4 and again.arguments == tokenizer.arguments
    assert all(type(value) in (str, int) for value in tokenizer.arguments.values())
    assert again.decode(again(["Red pi\u00f1ata, blue"])[0][0]) == "red pi\u00f1ata ?"


@pytest.mark.parametrize("words, message", [
    ([], "empty vocabulary"),
    ("  ", "empty vocabulary"),
    (["red", "heart", "red"], "'red' more than once"),
    (["red heart"], "'red heart' is no single word"),
    (["Red"], "'Red' is no single word"),
    ([7], "a text must be a string, got 7"),
])  # fmt: skip
def test_a_vocabulary_that_cannot_be(words, message):
    with pytest.raises(ValueError, match=message):
        WordTokenizer(words)


def test_texts_that_are_none():
    tokenizer = WordTokenizer(["red"])
    with pytest.raises(ValueError, match="list of strings, got 'red heart'; one text is"):
        tokenizer("red heart")
    with pytest.raises(ValueError, match="must be a string, got 3 of type int"):
        tokenizer(["red", 3])
    with pytest.raises(ValueError, match="list of strings, got None"):
        tokenizer(None)
    with pytest.raises(ValueError, match="list of strings"):
        WordTokenizer.from_captions("red heart")
    with pytest.raises(ValueError, match="empty vocabulary"):
        WordTokenizer.from_captions(["...", ""])
    with pytest.raises(ValueError, match="length must be a whole number of at least 1, got 0"):
        WordTokenizer(["red"], length=0)
