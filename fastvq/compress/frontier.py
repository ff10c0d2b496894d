"""What sizes a model can have and how good it is then, as measured; and a drawing of it."""

from __future__ import annotations

from typing import Any

from fastvq._plot import axes

__all__ = ["Frontier"]


class Frontier(dict):
    """Models of growing size: lists of equal length, by what they tell.

    "bytes" of the file, "expected dB" (noise of the outputs, as the allocation expects it: what it
    minimises) and "score", measured on examples: None where there are none. "whole" has the bytes
    and the score of the float model.

    Parameters
    ----------
    contents : mapping
    name : str, optional
        What the score is.
    """

    def __init__(self, contents, name=None):
        super().__init__(contents)
        self.name = name

    def plot(self, ax: Any = None) -> Any:
        """Draw the score over the bytes of the file; without examples, the expected noise.

        Parameters
        ----------
        ax : matplotlib Axes, optional

        Returns
        -------
        ax : matplotlib Axes

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        ax = axes(ax)
        key = "expected dB" if self.name is None else "score"
        ax.plot(self["bytes"], self[key], "o-", label="fastvq")
        nbytes, score = self["whole"]
        if self.name is not None:
            ax.plot([nbytes], [score], "s", label="float32")
        ax.set(xlabel="bytes of the file", ylabel=self.name or key, xscale="log")
        ax.legend()
        return ax
