"""A graph made ready for inputs of known shapes: what is known already, what runs, and where.

`Plan` walks the graph once. Values that do not depend on data (shapes, and what is computed of
them) are worked out there and then; every other node becomes calls of kernels, or of its definition
in NumPy. Values live in one arena, in which those that are not needed at the same time share room.
A plan may be run from several threads at once: each takes a `_Frame` of its own, arena included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple

import numpy as np

from fastvq._memory import CACHE_LINE, aligned
from fastvq.runtime import registry
from fastvq.runtime.graph import DTYPES, Graph, GraphError
from fastvq.runtime.ops import operators

__all__ = ["Plan", "Tensor"]

# A plan that would need more than this is refused before anything is allocated.
_MOST_BYTES = 1 << 46
# Operators that only give a value another shape: no copy, no call.
_VIEWS = frozenset(["Reshape", "Squeeze", "Unsqueeze", "Flatten"])


class Tensor:
    """A value of a plan.

    Attributes
    ----------
    name, shape, dtype
    encoded : EncodedTensor of a constant of the model, or None
    """

    __slots__ = ("_value", "dtype", "encoded", "name", "root", "shape")

    def __init__(self, name, shape, dtype, *, value=None, encoded=None, root=None):
        self.name, self.shape, self.dtype = name, tuple(shape), np.dtype(dtype)
        self._value, self.encoded = value, encoded
        self.root = self if root is None else root

    @property
    def value(self):
        """The array, where it is known before the model runs; else None."""
        if self._value is None and self.encoded is not None:
            self._value = self.encoded.decode()
        return self._value

    def rows(self, first, stop):
        """Some rows of a known value: all of a large constant need not be decoded at once."""
        found = self.encoded.rows(first, stop) if self._value is None else None
        return self.value[first:stop] if found is None else found

    @property
    def known(self):
        return self._value is not None or self.encoded is not None

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.size * self.dtype.itemsize


class _Definition(NamedTuple):
    """A node that runs as its definition in NumPy."""

    node: object
    inputs: list
    outputs: list


class Plan:
    """A graph for one set of input shapes.

    Parameters
    ----------
    graph : Graph
    shapes : mapping of input name to shape
    packed : dict
        Weights as kernels read them, shared by the plans of a model; filled here.
    threads : int

    Attributes
    ----------
    outputs : list of (name, shape, dtype)
    arena_bytes : int
    """

    def __init__(self, graph: Graph, shapes: Mapping[str, tuple], packed: dict, threads: int = 1):
        self.graph, self.threads = graph, threads
        self._packed = packed
        self._tensors: dict[str, Tensor] = {}
        self._scratch: list[Tensor] = []
        self.steps: list[registry.KernelCall | _Definition] = []
        self.labels: list[object] = []  # the node of each step
        self._take_inputs(shapes)
        self._make_steps(self._walk())
        self._lay_out()
        self._frames: list[_Frame] = []

    # ---- what lowerings use --------------------------------------------------------------------

    def packed(self, tensor: Tensor, layout: str, make: Callable):
        """What `make` gives for this constant, made once for all plans of the model."""
        key = tensor.name, layout
        if tensor.encoded is None:
            return make(tensor)
        if key not in self._packed:
            self._packed[key] = make(tensor)
            tensor._value = None  # decoded for packing only
            tensor.encoded.release()
        return self._packed[key]

    def scratch(self, nbytes: int) -> Tensor:
        """Room for a step's own use."""
        tensor = Tensor(f"scratch {len(self._scratch)}", (int(nbytes),), np.uint8)
        self._scratch.append(tensor)
        return tensor

    # ---- making ------------------------------------------------------------------------------

    def _take_inputs(self, shapes):
        for value in self.graph.inputs:
            self._tensors[value.name] = Tensor(value.name, shapes[value.name], DTYPES[value.dtype])
        for name, encoded in self.graph.constants.items():
            self._tensors[name] = Tensor(name, encoded.shape, encoded.dtype, encoded=encoded)

    def _walk(self):
        """The nodes that have to run, with their tensors, after working out what is known."""
        running = []
        for node in self.graph.nodes:
            inputs = [self._tensors[name] if name else None for name in node.inputs]
            outputs = self._outputs_of(node, inputs)
            self._tensors.update((t.name, t) for t in outputs if t.name)
            if not all(t.known for t in outputs) and not all(t.root is not t for t in outputs):
                running.append((node, inputs, outputs))
        return self._needed(running)

    def _outputs_of(self, node, inputs):
        operator = operators()[node.operator]
        try:
            forms = operator.forms(inputs, node.attributes)
            if max((_nbytes(form) for form in forms), default=0) > _MOST_BYTES:
                raise ValueError("its output is larger than any memory")
            if node.operator == "Shape" or all(t is None or t.known for t in inputs):
                arrays = _arrays(operator, inputs, _stand_in)
                values = operator.run(arrays, node.attributes)
                pairs = zip(node.outputs, values, strict=False)
                # Kernels read values where they lie: not the views that some definitions give.
                return [
                    Tensor(name, v.shape, v.dtype, value=np.asarray(v, order="C"))
                    for name, v in pairs
                ]
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise GraphError(f"{node}: {error}") from None
        names = [*node.outputs, *[""] * (len(forms) - len(node.outputs))]
        root = inputs[0].root if node.operator in _VIEWS else None
        return [
            Tensor(name or f"{node.name} {i}", form.shape, form.dtype, root=root)
            for i, (name, form) in enumerate(zip(names, forms, strict=True))
        ]

    def _needed(self, running):
        """Those of the nodes on which an output depends."""
        wanted = {self._tensors[value.name].root for value in self.graph.outputs}
        needed = []
        for node, inputs, outputs in reversed(running):
            if wanted.intersection(outputs):
                wanted.update(t.root for t in inputs if t is not None)
                needed.append((node, inputs, outputs))
        return needed[::-1]

    def _make_steps(self, running):
        for node, inputs, outputs in running:
            lower = registry.lowering_of(node.operator)
            before = len(self._scratch)
            calls = lower(node, inputs, outputs, self) if lower else None
            if calls is None:
                del self._scratch[before:]
                calls = [_Definition(node, inputs, outputs)]
            self.steps += calls
            self.labels += [node] * len(calls)

    def _lay_out(self):
        """Places for all values: which is an input, an output, or where in the arena it lies."""
        self.outputs = [
            (value.name, self._tensors[value.name].shape, self._tensors[value.name].dtype)
            for value in self.graph.outputs
        ]
        # Addresses that move from call to call, by the number that Program knows them under.
        self._moving = {self._tensors[v.name]: i for i, v in enumerate(self.graph.inputs)}
        self._copied = []  # outputs that no step makes: inputs, constants, one value twice
        made = {t.root for step in self.steps for t in _written(step)}
        for i, value in enumerate(self.graph.outputs):
            tensor = self._tensors[value.name]
            if tensor.root in made and tensor.root not in self._moving:
                self._moving[tensor.root] = len(self.graph.inputs) + i
            else:
                self._copied.append((i, tensor))
        lives = {}
        for number, step in enumerate(self.steps):
            for tensor in _touched(step):
                first, _ = lives.get(tensor.root, (number, number))
                lives[tensor.root] = first, number
        lives = {t: life for t, life in lives.items() if t not in self._moving and not t.known}
        self._offsets, self.arena_bytes = _arena(lives)
        if self.arena_bytes > _MOST_BYTES:
            raise GraphError("the model needs more than any memory for inputs of these shapes")

    # ---- running -----------------------------------------------------------------------------

    def run(self, arrays: list[np.ndarray], seconds: np.ndarray | None = None) -> list[np.ndarray]:
        """Outputs for inputs of the plan's shapes and dtypes, C-contiguous.

        To `seconds`, one of each step, the time that each takes is added.
        """
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = _Frame(self)
        try:
            return frame.run(arrays, seconds)
        finally:
            self._frames.append(frame)


class _Frame:
    """What one running call of a plan needs for itself."""

    def __init__(self, plan):
        self._plan = plan
        self._arena = aligned((plan.arena_bytes,), np.uint8)
        self._segments = self._split()
        self._program = self._compile() if any(c for c, *_ in self._segments) else None

    def _split(self):
        """Runs of kernel calls, as (True, first, last, 0), and definitions, one by one."""
        segments, n_calls = [], 0
        for number, step in enumerate(self._plan.steps):
            is_call = isinstance(step, registry.KernelCall)
            if is_call and segments and segments[-1][0]:
                segments[-1][2] += 1
            else:
                segments.append([is_call, n_calls, n_calls + 1, number])
            n_calls += is_call
        return segments

    def _compile(self):
        from fastvq._kernels._program import Program

        self._calls = [s for s in self._plan.steps if isinstance(s, registry.KernelCall)]
        return Program(
            [
                (
                    registry.kernel(call.kernel),
                    [self._address(operand) for operand in call.operands],
                    call.sizes,
                    call.values,
                    call.threads,
                )
                for call in self._calls
            ]
        )

    def _address(self, operand):
        if operand is None:
            return None
        if isinstance(operand, np.ndarray):
            return operand.ctypes.data
        if operand.known:
            return operand.value.ctypes.data
        if operand.root in self._plan._moving:
            return -1 - self._plan._moving[operand.root]
        return self._arena.ctypes.data + self._plan._offsets[operand.root]

    def run(self, arrays, seconds):
        plan = self._plan
        outputs = [np.empty(shape, dtype) for _, shape, dtype in plan.outputs]
        moving = [*arrays, *outputs]
        if self._program is not None:
            self._program.bind(moving)
        for is_call, first, last, number in self._segments:
            if is_call:
                self._run_calls(first, last, number, seconds)
            else:
                began = perf_counter()
                self._run_definition(plan.steps[number], moving)
                if seconds is not None:
                    seconds[number] += perf_counter() - began
        for i, tensor in plan._copied:
            outputs[i][...] = self._array(tensor, moving)
        return outputs

    def _run_calls(self, first, last, number, seconds):
        times = None if seconds is None else np.zeros(last)
        failed, answer = self._program.run(first, last, times)
        if seconds is not None:
            seconds[number : number + last - first] += times[first:]
        if failed >= 0:
            node = self._plan.labels[number + failed - first]
            error = self._calls[failed].failure(answer)
            raise type(error)(f"{node}: {error}")

    def _run_definition(self, step, moving):
        operator = operators()[step.node.operator]
        arrays = _arrays(operator, step.inputs, lambda tensor: self._array(tensor, moving))
        results = operator.run(arrays, step.node.attributes)
        for tensor, result in zip(step.outputs, results, strict=False):
            if tensor.root in self._plan._moving or tensor.root in self._plan._offsets:
                self._array(tensor, moving)[...] = result

    def _array(self, tensor, moving):
        if tensor.known:
            return tensor.value
        if tensor.root in self._plan._moving:
            return moving[self._plan._moving[tensor.root]].reshape(tensor.shape)
        start = self._plan._offsets[tensor.root]
        room = self._arena[start : start + tensor.nbytes]
        return room.view(tensor.dtype).reshape(tensor.shape)


def _arena(lives):
    """Offsets for values so that none overlaps another that lives at the same time; total bytes.

    Largest first, each at the lowest place that is free throughout its life (greedy by size, as in
    Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).
    """
    placed = []
    offsets = {}
    for tensor in sorted(lives, key=lambda t: -t.nbytes):
        first, last = lives[tensor]
        size = -(-tensor.nbytes // CACHE_LINE) * CACHE_LINE
        at = 0
        for start, stop, born, dead in sorted(placed):
            if born <= last and first <= dead and at < stop and start < at + size:
                at = stop
        placed.append((at, at + size, first, last))
        offsets[tensor] = at
    return offsets, max((stop for _, stop, _, _ in placed), default=0)


def _touched(step):
    operands = (
        step.operands if isinstance(step, registry.KernelCall) else step.inputs + step.outputs
    )
    return [t for t in operands if isinstance(t, Tensor)]


def _written(step):
    """Tensors that a step may write: of a kernel's operands any that nothing knows before."""
    return (
        step.outputs
        if isinstance(step, _Definition)
        else [t for t in _touched(step) if not t.known]
    )


def _nbytes(form):
    return math.prod(form.shape) * form.dtype.itemsize


def _arrays(operator, tensors, array_of):
    """What a definition takes: None, arrays, and encoded tensors where it wants those."""
    return [
        None if t is None else t.encoded if i in operator.encoded else array_of(t)
        for i, t in enumerate(tensors)
    ]


def _stand_in(tensor):
    """The array of a tensor; for Shape, which reads none of it, an array that takes no room."""
    if tensor.known:
        return tensor.value
    return np.broadcast_to(np.zeros((), tensor.dtype), tensor.shape)
