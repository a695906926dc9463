"""The cache of encoded prompts: the same values, each text encoded once, whatever interrupts or damages it."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from test_text_encoders import VOCABULARY, tiny

from minidiff.datasets import load_dataset
from minidiff.text import text_encoder
from minidiff.text_cache import CachedEncoder


class Counting:
    """An encoder that counts what it is asked, and may break down after so many."""

    def __init__(self, encoder, most=10**9):
        self.encoder, self.seen, self.most = encoder, [], most

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def __call__(self, prompts):
        if len(self.seen) + len(prompts) > self.most:
            raise KeyboardInterrupt
        self.seen += prompts
        return self.encoder(prompts)


CAPTIONS = [f"{a} {b} {c}" for a in ("red", "blue") for b in VOCABULARY for c in VOCABULARY]


def test_the_cache_gives_what_the_encoder_gives(tmp_path):
    encoder = Counting(tiny())
    cached = CachedEncoder(encoder, tmp_path, chunk=50)
    prompts = ["a red circle", "", "cat", "a red circle", "\u4e2d cat \U0001f431"] + CAPTIONS
    first, direct = cached(prompts), encoder.encoder(prompts)
    assert sorted(encoder.seen) == sorted(set(prompts))  # each once
    for a, b in zip(first, direct):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=4e-3)
    second = CachedEncoder(Counting(tiny(), most=0), tmp_path)(prompts[::-1])
    assert all(torch.equal(a.flip(0), b) for a, b in zip(second, first))
    assert cached([]).tokens.shape == (0, 1, 16) and cached([""]).tokens.shape == (1, 1, 16)
    assert len(cached) == len(set(prompts)) and cached.dim == 16 and cached.length == 6
    with pytest.raises(ValueError, match="list of strings"):
        cached("a cat")
    with pytest.raises(ValueError, match="keeps what the encoder 'tiny' .* said, not 'tiny'"):
        CachedEncoder(tiny(seed=1), tmp_path)


def test_an_interrupted_cache_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(Counting(tiny(), most=210), tmp_path, chunk=100)(CAPTIONS)
    encoder = Counting(tiny())
    cached = CachedEncoder(encoder, tmp_path, chunk=100)
    assert len(cached) == 200
    cached(CAPTIONS)
    assert encoder.seen == CAPTIONS[200:]


def test_damaged_and_unfinished_shards_are_encoded_again(tmp_path):
    truth = CachedEncoder(tiny(), tmp_path, chunk=100)(CAPTIONS)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) == 5 and not list(tmp_path.glob("*.part"))
    shards[0].write_bytes(shards[0].read_bytes()[:-7])
    shards[1].write_bytes(b"")
    (tmp_path / "left.part").write_bytes(b"half")
    encoder = Counting(tiny())
    with pytest.warns(UserWarning, match="is damaged and left out") as caught:
        again = CachedEncoder(encoder, tmp_path, chunk=100)(CAPTIONS)
    assert len(caught) == 2 and 100 < len(encoder.seen) <= 200
    assert torch.allclose(again.tokens, truth.tokens, atol=4e-3)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_many_shards_take_no_open_files(tmp_path):
    """A million captions are a thousand shards, and a process may have that many files open."""
    before = len(os.listdir("/proc/self/fd"))
    cached = CachedEncoder(tiny(), tmp_path, chunk=10)
    cached(CAPTIONS)
    assert len(list(tmp_path.glob("*.safetensors"))) > 40
    assert len(os.listdir("/proc/self/fd")) < before + 5


def test_a_folder_whose_encoder_cannot_be_read(tmp_path):
    CachedEncoder(tiny(), tmp_path)
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(ValueError, match="encoder.json does not tell whose folder .* delete it"):
        CachedEncoder(tiny(), tmp_path)


def test_many_small_shards_are_joined(tmp_path):
    cached = CachedEncoder(tiny(), tmp_path, chunk=100)
    for begin in range(0, 400, 4):
        cached(CAPTIONS[begin:begin + 4])
    truth = cached(CAPTIONS[:400])
    assert len(list(tmp_path.glob("*.safetensors"))) == 100
    again = CachedEncoder(Counting(tiny(), most=0), tmp_path, chunk=100)
    assert len(list(tmp_path.glob("*.safetensors"))) <= 5
    assert all(torch.equal(a, b) for a, b in zip(again(CAPTIONS[:400]), truth))
    assert torch.equal(cached(CAPTIONS[:400]).tokens, truth.tokens)  # who had the old ones open goes on reading them


def _encode(folder, begin):
    torch.set_num_threads(1)
    cached = CachedEncoder(tiny(), folder, chunk=20)
    for at in range(begin, begin + 300, 30):
        cached(CAPTIONS[at:at + 30])


def test_processes_that_write_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_encode, args=(str(tmp_path), begin)) for begin in (0, 60)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    read = CachedEncoder(Counting(tiny(), most=0), tmp_path)(CAPTIONS[:360])
    assert torch.allclose(read.tokens, tiny()(CAPTIONS[:360]).tokens, atol=4e-3)
    assert not list(tmp_path.glob("*.part"))


def test_the_second_time_is_quick(tmp_path):
    """Less is asked for than the fifty times of benchmarks/text_cache.py: machines are busy, the encoder is quick."""
    encoder = text_encoder("words")
    prompts = sorted(set(load_dataset("shapes", unsaid=0.3).batch(range(20_000))[2]))[:5000]
    begin = time.process_time()
    CachedEncoder(encoder, tmp_path)(prompts)
    first, seconds = time.process_time() - begin, []
    for _ in range(5):
        begin = time.process_time()
        CachedEncoder(Counting(encoder, most=0), tmp_path)(prompts)
        seconds.append(time.process_time() - begin)
    assert first / min(seconds) > 25, (first, seconds)
