"""What `fit_to_budget` measured, and a drawing of it."""

from typing import Any

from fastvq._plot import axes

__all__ = ["RateCurve"]


class RateCurve(dict):
    """Measured points of rate and distortion: lists of equal length, by what they tell.

    "kind" and "parameters" (text) say which candidate, "rows" on how many rows it was fitted;
    "bytes" a vector, "distortion" on rows held out and "seconds" to encode a row are what was
    measured: None where "error", else None, says why there is nothing.
    """

    def plot(self, ax: Any = None) -> Any:
        """Draw distortion over bytes a vector, of each candidate as measured on most rows.

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
        last = self._latest()
        for kind in sorted({self["kind"][i] for i in last}):
            points = sorted(
                (self["bytes"][i], self["distortion"][i]) for i in last if self["kind"][i] == kind
            )
            ax.plot(*zip(*points, strict=True), "o-", label=kind)
        ax.set(xlabel="bytes a vector", ylabel="distortion", xscale="log", yscale="log")
        ax.legend()
        return ax

    def _latest(self):
        """The last measurement of each candidate that did not fail."""
        keys = zip(self["kind"], self["parameters"], self["error"], strict=True)
        return list({key: i for i, key in enumerate(keys) if key[-1] is None}.values())
