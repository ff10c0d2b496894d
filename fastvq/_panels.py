"""The layout in which the tile reads a codebook; see _kernels/tile_body.h."""

import numpy as np


def pack_panels(factors, starts, per_group):
    """Groups of codewords, each its starting values, then for every feature its factors.

    What fills the last group starts at infinity: it is neither nearest nor second nearest.

    Parameters
    ----------
    factors : (k, d) array, whose dtype the panels have
    starts : (k,) array
    per_group : codewords in a group
    """
    n, width = factors.shape
    groups = -(-n // per_group)
    panels = np.zeros((groups, 1 + width, per_group), factors.dtype)
    panels[:, 0] = np.inf
    whole = n // per_group
    full = whole * per_group
    panels[:whole, 0] = starts[:full].reshape(whole, per_group)
    panels[:whole, 1:] = factors[:full].reshape(whole, per_group, width).transpose(0, 2, 1)
    if whole < groups:
        panels[whole, 0, : n - full] = starts[full:]
        panels[whole, 1:, : n - full] = factors[full:].T
    return panels.ravel()
