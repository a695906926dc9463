"""Where a sampler's randomness comes from."""

import numpy as np
import torch


def seeded_noise(seeds):
    """A function x -> unit Gaussian noise of the shape, type and device of x (B, ...), reproducible picture by picture.

    Picture i draws from its own stream, seeded by seeds[i] (a number, or a pair of seed and picture number), so its
    noise does not depend on the batch it is made in. The streams are drawn in float32 on the CPU: the same pictures
    on every machine.
    """
    streams = [torch.Generator().manual_seed(stream_seed(seed)) for seed in seeds]

    def noise(x):
        if len(x) != len(streams):
            raise ValueError(f"{len(streams)} seeds for a batch of {len(x)} pictures; seeded_noise needs one for each")
        drawn = torch.stack([torch.randn(x.shape[1:], generator=stream, dtype=torch.float32) for stream in streams])
        return drawn.to(x.device, x.dtype, non_blocking=True)

    return noise


def stream_seed(seed):
    """A 63-bit number mixed from a seed or a pair (seed, picture number): one stream for each pair below 2^32."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))
