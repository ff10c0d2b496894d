"""Independent pieces of a fit, several at a time."""

from concurrent.futures import ThreadPoolExecutor

__all__ = ["in_threads"]


def in_threads(work, items, n_threads, stop=None):
    """``[work(item) for item in items]``, by up to `n_threads` threads.

    An error in one piece, or Ctrl-C, ends it: pieces that have not begun never do, and those at
    work may end early by looking at `stop`, a threading.Event.
    """
    n_threads = min(n_threads, len(items))
    if n_threads == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            if stop is not None:
                stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
