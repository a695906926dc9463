"""Checks of notebook 17: a masked mean, the map of a word, and twin captions."""

import torch
import torch.nn.functional as F

from minidiff.course.exercises import Wrong, compare, exercise, unpack

ALIKE = 0.998  # cosine of pooled vectors from which two captions are twins


@exercise("the mean is over the words alone, however long the neighbours are, and no words give zeros.")
def check_pool(pool):
    tokens, mask = torch.randn(4, 6, 5), torch.arange(6) < torch.tensor([[6], [4], [1], [0]])
    tokens = torch.where(mask[..., None], tokens, 3.0 + tokens)  # padding that is not zero, so that it shows
    counts = mask[..., None].float()
    sums = (tokens * counts).sum(1)
    right = sums / counts.sum(1).clamp(min=1)
    answer = pool(tokens, mask)
    if isinstance(answer, torch.Tensor) and answer.shape == right.shape and answer[3].isnan().all():
        raise Wrong("Not quite: a text without any word gives 0/0, NaN; divide by counts.clamp(min=1).")
    mistakes = {
        "padding counts: this is the mean over all rows": tokens.mean(1),
        "the padding is left out of the sum, but you divide by the number of all rows": sums / 6,
        "this is the sum, not yet divided by how many words there are": sums,
        "the mask is turned round: True means that a token counts":
            (tokens * (1 - counts)).sum(1) / (1 - counts).sum(1).clamp(min=1),
        "each text needs its own number of words; you divide all by the same": sums / counts.sum(1).mean(),
        "this is the last word alone, as CLIP pools":
            tokens[torch.arange(4), (mask.sum(1) - 1).clamp(min=0)] * mask[:, :1],
        "this is the first word alone": tokens[:, 0] * mask[:, :1],
        "you divide by the root of the number of words": sums / counts.sum(1).clamp(min=1).sqrt(),
    }  # fmt: skip
    compare(answer, right, mistakes, name="the pooled vector")


@exercise("a word's map is a column of the table: what all patches give to it.")
def check_map_of_word(map_of_word):
    for heads, side, length, word, extras in ((3, 4, 6, 2, 0), (2, 3, 5, 1, 1), (4, 4, 16, 3, 2)):
        weights = torch.randn(heads, extras + side**2, length).softmax(2)
        columns = weights[:, :, word]  # (heads, extras + g * g)

        def grid(values, side=side):
            return values.reshape(side, side)

        patches = columns[:, extras:]
        mistakes = {
            "heads are summed; take their mean": grid(patches.sum(0)),
            "this is the first head alone; take the mean over all": grid(patches[0]),
            "only the strongest head is kept; take the mean": grid(patches.amax(0)),
            "rows and columns of the picture are swapped": grid(patches.mean(0)).T,
            "the map is scaled to sum to 1; the weights of a word over the patches need not": grid(
                patches.mean(0) / patches.mean(0).sum()),
            "the words are counted from 1; `word` counts from 0": grid(weights[:, extras:, word - 1].mean(0)),
        }  # fmt: skip
        if extras:
            mistakes["the tokens that are no patches stand at the beginning, not at the end"] = grid(
                columns[:, :-extras].mean(0))  # fmt: skip
        compare(map_of_word(weights, word, extras), grid(patches.mean(0)), mistakes,
                name=f"the map of word {word} with extras={extras}")


@exercise("what the pooled vector whispers, a short training does not hear.")
def check_twins(twins):
    from minidiff.datasets.shapes import canonical, parse
    from minidiff.text import text_encoder

    pair = unpack(twins(), "first", "second")
    if not all(isinstance(caption, str) for caption in pair):
        raise Wrong("Your function must return two strings.")
    try:
        first, second = map(parse, pair)
    except ValueError as error:
        raise Wrong(f"These are not both captions of the shapes: {error}") from None
    if first == second:
        raise Wrong("Not quite: these are the same sentence; they must mean different pictures.")
    if canonical(first) == canonical(second):
        raise Wrong("Not quite: both sentences describe the same picture, once from each side. Exchange something so "
                    "that the picture changes.")
    cosine = F.cosine_similarity(*text_encoder("words")(list(pair)).pooled, dim=0).item()
    words = sorted(pair[0].lower().split()), sorted(pair[1].lower().split())
    if cosine < ALIKE and words[0] != words[1]:
        raise Wrong(f"Not quite: the cosine is {cosine:.4f}, and above {ALIKE} is asked. The sentences have different "
                    "words, which the pooled vector says loudly: use the same words in another order.")
    if cosine < ALIKE:
        raise Wrong(f"Almost: the same words, and a cosine of {cosine:.4f}; above {ALIKE} is asked. Exchange less: one "
                    "property of the two things, their sizes or their colours, not the whole things.")
