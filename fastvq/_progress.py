"""Progress of long work: the one helper that may write to the terminal.

A bar of tqdm where it is installed, else a line on stderr every few seconds.
"""

import sys
import time

__all__ = ["Progress"]

_SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Shows how far a piece of work is; shows nothing where `verbose` is false.

    Parameters
    ----------
    what : str
        The name of the work.
    total : int, optional
        Steps in it, at most.
    verbose : int or bool

    Examples
    --------
    >>> with Progress("fit", total=3, verbose=0) as progress:
    ...     for inertia in (3.0, 2.5, 2.4):
    ...         progress.step(inertia=inertia)
    """

    def __init__(self, what, total=None, verbose=1):
        self._what, self._total = what, total
        self._done, self._shown_at = 0, 0.0
        self._bar = None
        self._verbose = bool(verbose)
        if self._verbose:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self._bar = tqdm(desc=what, total=total)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()
        elif self._verbose and self._done:
            self._write("done")

    def step(self, **facts):
        """One step is done; `facts` are numbers to show beside it."""
        self._done += 1
        if not self._verbose:
            return
        text = ", ".join(f"{name}={value:.6g}" for name, value in facts.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        elif time.monotonic() - self._shown_at > _SECONDS_BETWEEN_LINES:
            self._shown_at = time.monotonic()
            self._write(text)

    def _write(self, text):
        of_total = f"/{self._total}" if self._total else ""
        sys.stderr.write(f"{self._what}: {self._done}{of_total} {text}\n")
