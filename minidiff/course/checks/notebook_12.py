"""Checks of notebook 12: the gradient of a gate, the weights of a DiT, one modulation for all."""

import torch

from minidiff.course.exercises import compare, exercise, unpack

SIZES = {"S": (12, 384), "B": (12, 768), "L": (24, 1024), "XL": (28, 1152)}
PUBLISHED = {  # with 1000 classes, learned sigma and the fixed positions of 4 x 32 x 32 latents; patches of 2, 4, 8
    "S": (32_963_360, 32_945_024, 33_148_160),
    "B": (130_512_416, 130_475_648, 130_881_536),
    "L": (458_102_816, 458_053_760, 458_594_816),
    "XL": (675_129_632, 675_074_432, 675_683_072),
}


@exercise("a closed gate hides the branch from the loss, and still learns itself.")
def check_gate_gradients(gate_gradients):
    for closed in (False, True):
        slope, branch = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
        gate = torch.zeros(3, 8) if closed else torch.randn(3, 8)
        branch_in, gate_in = branch.clone().requires_grad_(), gate.clone().requires_grad_()
        (gate_in[:, None] * branch_in * slope).sum().backward()
        mine, of_branch = unpack(gate_gradients(slope, branch, gate), "gradient of the gate", "gradient of the branch")
        product = slope * branch
        mistakes = {
            "the gate acts on every token, so its gradient is the sum over the tokens; you return one for each":
                product,
            "add over the tokens, do not average": product.mean(1),
            "each picture has a gate of its own: do not add over the batch": product.sum((0, 1)),
            "the slope does not know f(x) yet: multiply by the branch": slope.sum(1),
            "multiply by the slope: how the loss depends on x'": branch.sum(1),
            "the gradient by the gate does not contain the gate": (gate[:, None] * product).sum(1),
            "the two are in the wrong order: first the gate's, then the branch's": gate[:, None] * slope,
        }
        compare(mine, gate_in.grad, mistakes, name="the gradient of the gate")
        mistakes = {
            "the slope has to pass the gate on its way to the branch: multiply by it": slope,
            "the gradient by the branch does not contain the branch": gate[:, None] * product,
            "the gates are still to be multiplied by the slope": gate[:, None].expand_as(slope),
            "asked is the gradient by f(x), not by x; the residual connection does not pass f":
                slope + gate[:, None] * slope,
        }
        compare(of_branch, branch_in.grad, mistakes, name="the gradient of the branch")


@exercise("patches of another size change the first and the last layer alone: weights do not tell the work.")
def check_dit_weights(dit_weights):
    for size, (depth, d) in SIZES.items():
        for p, expected in zip((2, 4, 8), PUBLISHED[size]):
            biases = depth * 15 * d + 2 * d + 8 * p * p + 2 * d + d  # all there are
            mistakes = {
                "the biases are missing": expected - biases,
                "the fixed positions are missing: (32 / p)^2 rows of width d": expected - (32 // p) ** 2 * d,
                "the table of classes needs a row for 'no class'": expected - d,
                "the outputs of the learned sigma are missing: 8 channels, not 4": expected - 4 * p * p * (d + 1),
                "the norm before the last layer has a modulation, too: d -> 2 d": expected - 2 * d * (d + 1),
                "the modulations of the blocks are missing: d -> 6 d in each": expected - depth * 6 * d * (d + 1),
                "the modulations of a block are six, three for attention and three for the MLP":
                    expected - depth * 3 * d * (d + 1),
                "only one block has a modulation; each has its own": expected - (depth - 1) * 6 * d * (d + 1),
                "the norms have no weights of their own here": expected + (depth * 4 + 2) * d,
                "attention ends with one more linear map, d -> d": expected - depth * d * (d + 1),
                "the time has two linear layers, 256 -> d and d -> d": expected - d * (d + 1),
                "the time has two linear layers, 256 -> d and d -> d; you have the second only": expected - 257 * d,
                "the patch embedding is missing: 4 p^2 -> d": expected - d * (4 * p * p + 1),
                "the last linear layer is missing: d -> 8 p^2": expected - 8 * p * p * (d + 1),
                "the MLP is four times as wide as a token: d -> 4 d -> d": expected - depth * (6 * d * d + 3 * d),
            }
            answer = dit_weights(depth, d, p)
            if isinstance(answer, float) and answer.is_integer():
                answer = int(answer)  # 32 / p is a float; a tensor of it would lose the last digits
            if isinstance(answer, (int, float)):  # small numbers are printed to the last digit
                answer, mistakes = answer - expected, {text: wrong - expected for text, wrong in mistakes.items()}
                compare(answer, 0, mistakes, name=f"the count for {size}/{p}, less {expected:,},", rtol=0, atol=0.5)
            else:
                compare(answer, expected, mistakes, name=f"the count for {size}/{p}", rtol=0, atol=0.5)


@exercise("a table of six vectors a block, in the place of a matrix of 6 d by d.")
def check_adaln_single(adaln_single):
    for batch, depth, d in ((3, 4, 8), (6, 6, 5), (1, 2, 16)):
        shared, tables = torch.randn(batch, 6 * d), torch.randn(depth, 6, d)
        six = shared.view(batch, 6, d)
        right = six + tables[:, None]
        mistakes = {
            "the tables are multiplied; they are added": six * tables[:, None],
            "the pictures come first; return (L, B, 6, d)": right.transpose(0, 1),
            "the six vectors lie one after the other in `shared`, d numbers each; you read it as d groups of six":
                shared.view(batch, d, 6).transpose(1, 2) + tables[:, None],
            "the tables are missing: all blocks get the same": six.expand(depth, -1, -1, -1),
            "the shared part is missing": tables[:, None].expand(-1, batch, -1, -1),
            "the six vectors of a block are still in one row: unflatten them to (6, d)": right.flatten(2),
        }
        if batch == depth:
            mistakes["table k went to picture k; every picture needs every table"] = six + tables
        compare(adaln_single(shared, tables), right, mistakes, name="the modulation")
