"""What each operator computes, by subject; see fastvq.runtime.ops for how to read them."""

from fastvq.runtime.definitions import (  # noqa: F401
    codes,
    distances,
    integers,
    movement,
    pointwise,
    products,
    recurrent,
    reductions,
    scores,
    trees,
)
