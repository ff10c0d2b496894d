"""The layout in which the tile reads a codebook; see _kernels/tile_body.h."""

import numpy as np


def pack_panels(factors, starts, per_group):
    """Groups of codewords, each its starting values, then for every feature its factors.

    What fills the last group is infinitely far away: neither nearest nor second nearest.

    Parameters
    ----------
    factors : (k, d) array, whose dtype the panels have
    starts : (k,) array
    per_group : codewords in a group
    """
    n, width = factors.shape
    panels = np.zeros((-(-n // per_group), 1 + width, per_group), factors.dtype)
    panels[n // per_group :, 0, n % per_group :] = np.inf
    _fill(panels[:, :1], starts[:, None])
    _fill(panels[:, 1:], factors)
    return panels.ravel()


def _fill(panels, values):
    """panels[g, f, j] = values[g * per_group + j, f] as far as there are values."""
    per_group = panels.shape[2]
    whole, rest = divmod(len(values), per_group)
    full = values[: whole * per_group].reshape(whole, per_group, values.shape[1])
    panels[:whole] = full.transpose(0, 2, 1)
    if rest:
        panels[whole, :, :rest] = values[whole * per_group :].T
