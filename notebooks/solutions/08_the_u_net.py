# %% tags=["exercise"] name="adm_features"
def adm_features(time, dim):
    """time (B,) -> (B, dim), dim even: dim / 2 cosines, then dim / 2 sines."""
    half = dim // 2
    angles = time[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)

# %% tags=["exercise"] name="downsample_same"
def downsample_same(x, weight, bias):
    """x (B, C, H, W), weight (D, C, 3, 3), bias (D,) -> (B, D, ceil(H / 2), ceil(W / 2))."""
    top, left = x.shape[2] % 2, x.shape[3] % 2  # an even size needs one zero, at the end; an odd one needs two
    return F.conv2d(F.pad(x, (left, 1, top, 1)), weight, bias, stride=2)

# %% tags=["exercise"] name="up_widths"
def up_widths(ch, ch_mult, num_res_blocks):
    """A list of pairs (width of h, width of the skip), one for each block of the way up, from the lowest level."""
    widths = [ch * mult for mult in ch_mult]
    kept = [ch]  # conv_in
    for level, width in enumerate(widths):
        kept += [width] * num_res_blocks
        if level < len(widths) - 1:
            kept.append(width)  # the downsampling
    pairs, h = [], widths[-1]
    for width in reversed(widths):
        for _ in range(num_res_blocks + 1):
            pairs.append((h, kept.pop()))
            h = width
    return pairs
