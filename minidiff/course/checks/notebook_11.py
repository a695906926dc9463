"""Checks of notebook 11: the price of two heads, a depth-wise convolution by shifts, and the text's share."""

import torch
import torch.nn.functional as F

from minidiff.course.exercises import Wrong, compare, exercise, unpack


@exercise("rearrange first costs 54 d whatever the patch is, and is the cheaper one from p = 3 on.")
def check_head_cost(head_cost):
    for dim, p in ((96, 2), (512, 4), (1536, 16)):
        mine = torch.tensor([float(value) for value in unpack(head_cost(dim, p), "linear", "rearrange")])
        pixels = p**2
        linear, conv, rearrange = 6 * dim * pixels, 162 * pixels, 54 * dim
        mistakes = {
            "linear first also has its 3 x 3 convolution, from 3 to 3 channels, at each of the p * p pixels":
                [linear, rearrange],
            "linear first has its convolution at each of the p * p pixels of a token, not once":
                [linear + 162, rearrange],
            "each of the 3 colours out of linear first's convolution reads all 3 colours in":
                [linear + conv / 3, rearrange],
            "a multiplication and an addition are two operations": [(linear + conv) / 2, rearrange / 2],
            "after rearranging a pixel has d / p^2 features, not d": [linear + conv, rearrange * pixels],
            "these are operations per pixel; a token has p * p of them":
                [(linear + conv) / pixels, rearrange / pixels],
            "rearrange first makes 3 colours of each pixel; you count one": [linear + conv, rearrange / 3],
            "the two are the wrong way round: linear first, then rearrange first": [rearrange, linear + conv],
        }  # fmt: skip
        right = torch.tensor([linear + conv, rearrange], dtype=torch.float)
        mistakes = {name: torch.tensor(value, dtype=torch.float) for name, value in mistakes.items()}
        compare(mine, right, mistakes, name=f"head_cost({dim}, {p})")


def by_conv(x, weight, bias, extras, mode="zeros", transposed=False):
    """The depth-wise convolution of tokens; the options are mistakes."""
    side = int((x.shape[1] - extras) ** 0.5)
    grid = x[:, extras:].transpose(1, 2).unflatten(2, (side, side))
    grid = grid.transpose(2, 3) if transposed else grid
    grid = F.pad(grid, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    out = F.conv2d(grid, weight, bias, groups=len(weight))
    out = out.transpose(2, 3) if transposed else out
    return torch.cat([x[:, :extras], out.flatten(2).transpose(1, 2)], dim=1)


@exercise("a kernel is nine numbers a channel, and the border of the grid sees zeros.")
def check_dwconv_by_shifts(dwconv_by_shifts):
    for extras, side in ((1, 4), (2, 5), (0, 3)):
        x, weight, bias = torch.randn(2, extras + side**2, 6), torch.randn(6, 1, 3, 3), torch.randn(6)
        right = by_conv(x, weight, bias, extras)
        extra = torch.cat([x[:, :extras] * weight[:, 0, 1, 1] + bias, right[:, extras:]], dim=1)
        mistakes = {
            "the copies go round: torch.roll brings in the other side of the grid, where zeros belong":
                by_conv(x, weight, bias, extras, mode="circular"),
            "the border is repeated outwards; outside there are zeros":
                by_conv(x, weight, bias, extras, mode="replicate"),
            "the kernel is turned round: weight[:, 0, 0, 0] belongs to the neighbour above and to the left":
                by_conv(x, weight.flip(2, 3), bias, extras),
            "rows and columns of the kernel are swapped": by_conv(x, weight, bias, extras, transposed=True),
            "the bias is added with each of the nine copies; once is enough":
                by_conv(x, weight, 9 * bias, extras),
            "the bias is missing": by_conv(x, weight, torch.zeros(6), extras),
            "the first `extras` tokens must pass unchanged; only the grid is convolved": extra,
            "the first `extras` tokens are lost; put them back in front": right[:, extras:],
        }  # fmt: skip
        if not extras:
            mistakes = {name: value for name, value in mistakes.items() if "extras" not in name}
        compare(dwconv_by_shifts(x, weight, bias, extras), right, mistakes, name=f"the result for extras={extras}",
                atol=1e-5)  # fmt: skip


@exercise("at the start s is the share of the words by number, and padding has no voice.")
def check_text_share(text_share):
    mask = torch.arange(5) < torch.tensor([[3], [5]])  # three words and two of padding; five words
    for scale in (1.0, 6.0):
        q, k_text, k_image = (scale**0.5 * torch.randn(2, 3, n, 16) for n in (8, 5, 8))

        def scores(k, c=16, q=q):
            return q @ k.transpose(2, 3) / c**0.5

        def difference(c=16, kept=mask, fill=-torch.inf, scores=scores, k_text=k_text, k_image=k_image):
            text = scores(k_text, c).masked_fill(~kept[:, None, None], fill)
            return text.logsumexp(3) - scores(k_image, c).logsumexp(3)

        right, words = difference().sigmoid(), mask.sum(1)[:, None, None]
        everything = torch.cat([scores(k_text).masked_fill(~mask[:, None, None], -torch.inf), scores(k_image)], 3)
        mistakes = {
            "the padding is counted too: use `mask`": difference(kept=torch.ones_like(mask)).sigmoid(),
            "the mask is the wrong way round: True is a word": difference(kept=~mask).sigmoid(),
            "a score of 0 still counts, since e to the 0 is 1; padding needs minus infinity":
                difference(fill=0.0).sigmoid(),
            "this is the share of the image; the text's is 1 minus it": 1 - right,
            "the scores are not divided by the square root of c": difference(1).sigmoid(),
            "the scores are divided by c; it is the square root of c": difference(256).sigmoid(),
            "this is the share by number, words / (words + N); it depends on the scores":
                (words / (words + 8)).expand_as(right),
            "the means of the exponentials are compared, not their sums: more words weigh more":
                (difference() - (words / 8).log()).sigmoid(),
            "this is the ratio of the text's sum to the image's; divide by both together": difference().exp(),
            "these are the weights of single words; sum them": everything.softmax(3)[..., :5],
        }  # fmt: skip
        compare(text_share(q, k_text, k_image, mask), right, mistakes,
                name=f"the share, with scores of about {scale:g},")  # fmt: skip
    q = torch.full((2, 1, 1, 4), 20.0)
    k_text, k_image = 20.0 * torch.ones(2, 1, 2, 4), 20.0 * torch.ones(2, 1, 6, 4)
    mine = text_share(q, k_text, k_image, torch.tensor([[True, True], [False, False]]))
    if isinstance(mine, torch.Tensor) and mine[:1].isnan().any():
        raise Wrong("exp() of scores in the hundreds is infinite: subtract the largest first, as softmax does.")
    expected = torch.tensor([0.25, 0.0])[:, None, None]
    compare(mine, expected, name="the share for scores of 800, first with two words, then with none,")
