"""Drawing, which needs the extra "plot"."""

__all__ = ["axes"]


def axes(ax=None):
    """These axes of matplotlib, or new ones; ImportError says what to install where it is not."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError('a plot needs matplotlib: pip install "fastvq[plot]"') from error
    return pyplot.subplots()[1] if ax is None else ax
