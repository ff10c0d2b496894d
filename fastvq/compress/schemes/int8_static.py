"""Layers of 8-bit integers whose steps are known before they run; see `int8`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from fastvq.compress import stats
from fastvq.compress.schemes.int8 import ACTIVATION, Writing, pads_of, recurrent_of, window
from fastvq.compress.schemes.int8_dynamic import write_dynamic
from fastvq.compress.schemes.steps import Steps, channel_steps, whole_steps, wide_scale
from fastvq.compress.weights import MOVES
from fastvq.runtime import functions
from fastvq.runtime.layout import forms as forms_of

__all__ = ["Static", "table_noise"]

_MOST = np.iinfo(np.int32).max


class Static:
    """A graph in whose integer part int8 flows from layer to layer.

    Where two values are added, layers give int16, and the sum is int16 (`skips`): whatever such a
    stream goes through is rounded once for each layer that reads it, not over and over.

    Parameters
    ----------
    graph, integer, stored, granularity : as for `dynamic`
    skips : {"int16", "int8"}
    steps : {"channel", "tensor"}
        Whether each channel has steps of its own where nothing but layers needs to know.
    by_row : set of str
        First outputs of those layers, dense ones and convolutions, that find the steps of their
        input as they run after all.
    apart : set of str
        What functions give that stay float: their tables would be too coarse (`table_noise`).

    Attributes
    ----------
    watched : list of str
        The values whose statistics `write` needs.
    """

    def __init__(
        self, graph, integer: Iterable[str], stored=(), granularity="channel", skips="int16",
        steps="channel", by_row=(), apart=(),
    ):  # fmt: skip
        self._recurrent = recurrent_of(graph, integer)
        self._by_row, self._apart = set(by_row) & set(integer), set(apart)
        self._graph, self._chosen = graph, set(integer) - self._recurrent - self._by_row
        self._settings = stored, granularity
        self._forms = forms_of(graph, 96)
        self._users = graph.users()
        self._makers = {name: node for node in graph.nodes for name in node.outputs}
        self._outputs = {value.name for value in graph.outputs}
        self._nodes = self._partition()
        self._groups, self._streams = _Groups(), _Groups()
        self._of_channels = steps == "channel" and granularity == "channel"
        self._sources: list[str] = []
        for node in graph.nodes:
            if node.outputs[0] in self._nodes:
                self._join(node)
                if skips == "int16":
                    self._widen(node)
        self.watched = [*dict.fromkeys(self._sources)]

    def write(self, statistics: Mapping[str, stats.Statistics], method="mse", known=None):
        """The integer graph, with the ranges that a calibration method finds in the statistics."""
        steps = {}
        for names, seen in self._seen(self._groups, statistics):
            symmetric = not self._symmetric.isdisjoint(names)
            found = whole_steps(seen, method, symmetric)
            if self._of_channels and not symmetric and self._may_differ(names, seen):
                found = self._channel_steps(names, seen, method)
            steps |= dict.fromkeys(names, found)
        streams = {}
        for names, seen in self._seen(self._streams, statistics):
            streams |= dict.fromkeys(names, wide_scale(seen.low, seen.high))
        integer = self._nodes | self._recurrent
        writer = _StaticWriting(
            self._graph, integer, *self._settings, known, steps, streams, self._by_row
        )
        return writer.written()

    def _seen(self, groups, statistics):
        """The groups of names that were looked at, and what was seen of all values of each."""
        members: dict[str, list] = {}
        for name, leader in groups.all():
            members.setdefault(leader, []).append(name)
        watched = {*self.watched}
        for names in members.values():
            parts = [statistics[name] for name in names if name in watched]
            if parts:
                yield names, stats.Statistics.merged(parts)

    # ---- which nodes work on integers ----------------------------------------------------------

    def _partition(self):
        """First outputs of the nodes that work on int8, chosen layers among them."""
        native, able = set(), set()
        for node in self._graph.nodes:
            if node.outputs[0] in self._chosen or self._can_follow(node, native):
                able.add(node.outputs[0])
                native.update(node.outputs)
        # What no integer layer reads in the end would only be converted twice.
        wanted = set()
        for node in reversed(self._graph.nodes):
            if node.outputs[0] in self._chosen or (
                node.outputs[0] in able
                and any(
                    user.outputs[0] in wanted
                    for name in node.outputs
                    for user in self._users.get(name, [])
                )
            ):
                wanted.add(node.outputs[0])
        return wanted

    def _can_follow(self, node, native):
        """Whether a node that is no layer can work on int8: all it reads is there as such."""
        if not node.inputs or node.inputs[0] not in native:
            return False
        attributes = node.attributes
        if node.operator in MOVES:
            return not any(name in native for name in node.inputs[1:])
        if node.operator == "Unary":
            able = attributes["function"] not in ("not", "isnan", "isinf")
            return able and node.outputs[0] not in self._apart
        if node.operator == "Concat":
            return all(name in native for name in node.inputs)
        if node.operator == "Pad":
            value = node.inputs[2] if len(node.inputs) > 2 else ""
            zero = not value or (
                value in self._graph.constants and not self._graph.constants[value].decode().any()
            )
            return zero or attributes.get("mode", "constant") != "constant"
        if node.operator == "Pool":
            return self._is_pool(node)
        if node.operator == "Reduce":
            return self._is_global_mean(node)
        if node.operator == "Binary" and attributes["function"] == "add":
            forms = [self._forms.get(name) for name in node.inputs]
            return (
                node.inputs[1] in native and None not in forms and forms[0].shape == forms[1].shape
            )
        return False

    def _is_pool(self, node):
        form, attributes = self._forms.get(node.inputs[0]), node.attributes
        if form is None or len(form.shape) not in (3, 4) or attributes.get("ceil", False):
            return False
        return pads_of(node, self._forms) is not None

    def _is_global_mean(self, node):
        form = self._forms.get(node.inputs[0])
        if form is None or node.attributes["function"] != "mean" or len(form.shape) not in (3, 4):
            return False
        axes = node.inputs[1] if len(node.inputs) > 1 else ""
        axes = self._graph.constants.get(axes)
        rank = len(form.shape)
        return axes is not None and {int(a) % rank for a in axes.decode()} == {*range(1, rank - 1)}

    # ---- which values have the same steps ------------------------------------------------------

    _symmetric: frozenset[str] = frozenset()

    def _join(self, node):
        """Enter the values of an integer node: those with steps of their own are looked at."""
        layer = node.outputs[0] in self._chosen
        data = [node.inputs[0]] if layer and node.operator != "MatMul" else [*node.inputs]
        if layer:
            for name in data:
                self._groups.leader(name)
                if not self._made_inside(name):
                    self._sources.append(name)
            if node.operator == "MatMul":
                self._symmetric |= {node.inputs[1]}
        shared = (
            node.operator in (*MOVES, "Pad", "Concat")
            or (node.operator == "Pool" and node.attributes["function"] == "max")
            or (node.operator == "Unary" and node.attributes["function"] == "identity")
        )
        if shared:
            values = node.inputs if node.operator == "Concat" else node.inputs[:1]
            for name in (*values, *node.outputs):
                self._groups.join(node.outputs[0], name)
        else:
            self._groups.leader(node.outputs[0])
            if _gives_integers(node, self._users, self._nodes):
                self._sources.append(node.outputs[0])

    def _made_inside(self, name):
        maker = self._makers.get(name)
        return maker is not None and maker.outputs[0] in self._nodes

    # ---- which values are int16 ----------------------------------------------------------------

    def _widen(self, node):
        """Let a sum, and layers whose values are added, be int16 in the same steps."""
        if node.operator != "Binary":
            return
        follower = _follower(self._graph, self._users, self._nodes, node, ("relu", "clip"))
        total = node.outputs[0] if follower is None else follower.outputs[0]
        self._streams.leader(total)
        for name in node.inputs:
            maker = self._makers.get(name)
            layer = maker is not None and maker.operator in ("Dense", "Conv")
            if (layer and maker.outputs[0] in self._chosen) or name in self._streams:
                self._streams.join(name, total)

    # ---- whose channels have steps of their own ------------------------------------------------

    def _may_differ(self, names, seen):
        """Whether all that works on a group's int8 form does so channel by channel."""
        if seen.channel_low is None or len(seen.channel_low) < 2:
            return False
        return all(
            self._gives_channels(name) and all(map(self._takes_channels(name), self._readers(name)))
            for name in names
        )

    def _readers(self, name):
        """The integer nodes that read a value's int8 form; the others read floats, or int16."""
        for user in self._users.get(name, []):
            inside = user.outputs[0] in self._nodes
            if inside and not (user.operator == "Binary" and name in self._streams):
                yield user

    def _gives_channels(self, name):
        """Whether whoever makes the int8 form has a multiplier for each channel."""
        if name in self._streams or not self._made_inside(name):
            return True
        maker = self._makers[name]
        if maker.outputs[0] not in self._chosen or maker.operator == "MatMul":
            return _is_max(maker)
        # A bound is the last step of every channel, and only 0 can be that on the lower side.
        return maker.attributes.get("activation") != "clip" or not maker.attributes.get("alpha")

    def _takes_channels(self, name):
        def takes(node):
            layer = node.outputs[0] in self._chosen and node.operator != "MatMul"
            return (layer and node.inputs[0] == name) or _is_max(node)

        return takes

    def _channel_steps(self, names, seen, method):
        nodes = [node for name in names for node in self._readers(name) if not _is_max(node)]
        weights, free_zero = [], True
        for node in nodes:
            weight, groups = self._graph.constants[node.inputs[1]].decode(), _groups_of(node)
            if groups == 1:
                weights.append(weight.reshape(len(weight), -1, weight.shape[-1]))
            free_zero = free_zero and groups == 1 and not any(pads_of(node, self._forms) or ())
        for name in names:
            free_zero = free_zero and (name in self._streams or not self._made_inside(name))
        return channel_steps(
            seen.channel_low, seen.channel_high, seen.n_rows, seen.range(method),
            seen.channel_power, weights, free_zero,
        )  # fmt: skip


def _groups_of(node):
    return node.attributes.get("groups", 1)


def _is_max(node):
    return node.operator == "Pool" and node.attributes["function"] == "max"


def _follower(graph, users, integer, node, functions=None):
    """The integer activation that alone reads a node, if it is one of these functions."""
    name = node.outputs[0]
    readers = users.get(name, [])
    if len(readers) != 1 or any(value.name == name for value in graph.outputs):
        return None
    (user,) = readers
    if user.operator != "Unary" or user.outputs[0] not in integer:
        return None
    function = user.attributes["function"]
    if function == "identity" or (functions and function not in functions):
        return None
    return user


def _gives_integers(node, users, integer):
    """Whether any reader of a node's outputs works on int8."""
    return any(u.outputs[0] in integer for name in node.outputs for u in users.get(name, []))


class _Groups:
    """Names in groups, each with a leader (union-find)."""

    def __init__(self):
        self._above: dict[str, str] = {}

    def leader(self, name):
        above = self._above.setdefault(name, name)
        if above != name:
            above = self._above[name] = self.leader(above)
        return above

    def __contains__(self, name):
        return name in self._above

    def join(self, a, b):
        self._above[self.leader(a)] = self.leader(b)

    def all(self):
        return [(name, self.leader(name)) for name in [*self._above]]


class _StaticWriting(Writing):
    """Nodes written one by one; a value may be there as floats, int16, int8, or several of them."""

    def __init__(self, graph, integer, stored, granularity, known, steps, streams, by_row=()):
        super().__init__(graph, integer, stored, granularity, known)
        self._steps, self._streams, self._by_row = steps, streams, by_row
        self._int8: dict[str, str] = {}  # of a value of the float graph, its int8 form
        self._int16: dict[str, str] = {}  # and its int16 form
        self._floats = {value.name for value in graph.inputs} | set(graph.constants)
        self._inside: set[str] = set()  # nodes that went into the one before

    def written(self):
        for node in self._graph.nodes:
            key = node.outputs[0]
            if key in self._inside:
                continue
            if key in self._integer:
                self._write(node)
            else:
                for name in node.inputs:
                    self.as_float(name)
                if key in self._by_row:
                    write_dynamic(self, node)
                else:
                    self.pass_on(node)
                self._floats.update(node.outputs)
        for name in self._outputs:
            self.as_float(name)
        return self.quantized()

    # ---- forms of values -----------------------------------------------------------------------

    def as_int8(self, name):
        """The int8 form of a value, made of its int16 form or its floats where it has none yet."""
        if name not in self._int8:
            made = self.new_name(name)
            scale, zero_point = self._steps[name]
            if name in self._int16:
                factor = np.float64(self._streams[name]) / np.float64(scale)
                inputs = self._int16[name], self.constant(f"{name} multiplier", np.float32(factor))
                inputs += (self.constant(f"{name} zero", np.int8(zero_point)),)
                self.add("Requantize", inputs, (made,), {}, f"{name} to int8")
            else:
                inputs = (name, *self._constants_of(name))
                self.add("Quantize", inputs, (made,), {}, f"{name} to int8")
            self._int8[name] = made
        return self._int8[name]

    def as_float(self, name):
        if name and name not in self._floats:
            if name in self._int16:
                scale = self.constant(f"{name} scale", np.float32(self._streams[name]))
                inputs = self._int16[name], scale
            else:
                inputs = (self._int8[name], *self._constants_of(name))
            self.add("Dequantize", inputs, (name,), {}, f"{name} to float32")
            self._floats.add(name)
        return name

    def _constants_of(self, name):
        scale, zero_point = self._steps[name]
        return (
            self.constant(f"{name} scale", np.float32(scale)),
            self.constant(f"{name} zero", np.int8(zero_point)),
        )

    def _new_int8(self, name):
        self._int8[name] = self.new_name(name)
        return self._int8[name]

    def _new_int16(self, name):
        self._int16[name] = self.new_name(name)
        return self._int16[name]

    # ---- nodes ---------------------------------------------------------------------------------

    def _write(self, node):
        write = {
            "Dense": self._layer,
            "Conv": self._layer,
            "MatMul": self._matmul,
            "Binary": self._sum,
            "Unary": self._unary,
            "Pool": self._pool,
            "Reduce": self._mean,
            "Pad": self._pad,
        }.get(node.operator, self._move)
        write(node)

    def _follower(self, node, functions_=None):
        return _follower(self._graph, self._users, self._integer, node, functions_)

    def _layer(self, node):
        """A layer in three forms: to floats, to 16-bit steps, or to 8-bit ones."""
        y, operator = node.outputs[0], f"Q{node.operator}"
        inputs, unit, attributes = self._products(node)
        activation = {k: node.attributes[k] for k in ACTIVATION if k in node.attributes}
        if not _gives_integers(node, self._users, self._integer):
            inputs[2] = self._multiplier(node, unit)
            attributes["dtype"] = "float32"
            self._floats.add(y)
            if activation.get("activation", "identity") == "identity":
                self.add(operator, inputs, (y,), attributes, node.name)
                return
            before = self.new_name(y)
            self.add(operator, inputs, (before,), attributes, node.name)
            self.add("Unary", (before,), (y,), _as_unary(activation), node.name)
            return
        function, alpha, beta = (
            activation.get(k, d) for k, d in zip(ACTIVATION, ("identity", 0.0, 0.0), strict=True)
        )
        if y in self._streams:
            wide = Steps(self._streams[y], 0)
            inputs[2] = self._multiplier(node, unit / wide.scale)
            attributes |= {"dtype": "int16", **_limits(function, alpha, beta, wide, np.int16)}
            self.add(operator, inputs, (self._new_int16(y),), attributes, node.name)
            return
        before, after = self._steps[y], y
        attributes |= _limits(function, alpha, beta, before)
        follower = self._follower(node) if function == "identity" else None
        table = None
        if follower is not None:
            after = follower.outputs[0]
            self._inside.add(after)
            table = _table(follower.attributes, before, self._steps[after])
        inputs[2] = self._multiplier(node, unit / before.scale)
        attributes["y_zero_point"] = int(before.zero_point)
        if table is not None:
            inputs.append(self.constant(f"{node.name} table", table))
        self.add(operator, inputs, (self._new_int8(after),), attributes, node.name)

    def _products(self, node):
        """A layer's inputs, less its multiplier; what its sums count in; its attributes."""
        x = node.inputs[0]
        steps = self._steps[x]
        scale = 1.0 if steps.factors is not None else np.float64(steps.scale)
        bias_name = node.inputs[2] if len(node.inputs) > 2 else ""
        least = None
        if bias_name:  # so that a bias in units of scale · scale fits in 30 bits
            least = np.abs(self._graph.constants[bias_name].decode().astype(np.float64))
            least = np.maximum(least / (scale * 2.0**29), 2.0**-126)
        weight, values, scales, bias = self.weight_of(node, least, steps.factors)
        inputs = [self.as_int8(x), weight, "", ""]
        unit = scale * scales.astype(np.float64)
        zero_point, rows = steps.zero_point, values.reshape(len(values), -1).astype(np.int64)
        whole = None if bias is None else np.rint(bias / unit)
        if np.ndim(zero_point):  # a number for each channel: it goes into the bias
            taps = rows.reshape(len(rows), -1, len(zero_point)).sum(axis=1)
            whole = (0 if whole is None else whole) - taps @ zero_point.astype(np.int64)
            zero_point = 0
        if whole is not None:
            room = _MOST - 255 * np.abs(rows).sum(axis=1)
            whole = np.clip(np.clip(whole, -_MOST, _MOST).astype(np.int64), -room, room)
            inputs[3] = self.constant(f"{node.name} bias", whole.astype(np.int32))
        return inputs, unit, {**window(node, self._forms), "x_zero_point": int(zero_point)}

    def _multiplier(self, node, values):
        values = np.clip(values, 2.0**-126, np.finfo(np.float32).max).astype(np.float32)
        return self.constant(f"{node.name} multiplier", values)

    def _matmul(self, node):
        a, b = node.inputs
        y, attributes = node.outputs[0], {}
        if node.attributes.get("transpose_b", False):
            attributes["transpose_b"] = True
        multiplier = self._steps[a][0] * self._steps[b][0]
        if _gives_integers(node, self._users, self._integer):
            multiplier /= self._steps[y][0]
            attributes["y_zero_point"] = self._steps[y][1]
            made = self._new_int8(y)
        else:
            attributes["dtype"] = "float32"
            self._floats.add(y)
            made = y
        attributes |= {"a_zero_point": self._steps[a][1], "b_zero_point": self._steps[b][1]}
        attributes["multiplier"] = float(np.float32(multiplier))
        self.add("QMatMul", (self.as_int8(a), self.as_int8(b)), (made,), attributes, node.name)

    def _sum(self, node):
        follower = self._follower(node, ("relu", "clip"))
        y = node.outputs[0]
        function = None, 0.0, 0.0
        if follower is not None:
            y = follower.outputs[0]
            self._inside.add(y)
            rest = follower.attributes
            function = rest["function"], rest.get("alpha", 0.0), rest.get("beta", 0.0)
        wide = y in self._streams
        (a, *a_steps), (b, *b_steps) = map(self._operand, node.inputs)
        steps = Steps(self._streams[y], 0) if wide else self._steps[y]
        # The most precise multipliers that stay within what the kernel has room for.
        most = 1 << (13 if wide else 14)
        factors = a_steps[0] / steps.scale, b_steps[0] / steps.scale
        shift = int(np.clip(math.floor(math.log2(most / max(factors))), 1, 30))
        attributes = {
            "a_multiplier": min(round(factors[0] * 2**shift), most),
            "b_multiplier": min(round(factors[1] * 2**shift), most),
            "shift": shift,
            "a_zero_point": a_steps[1],
            "b_zero_point": b_steps[1],
            "y_zero_point": int(steps.zero_point),
            **_limits(*function, steps, np.int16 if wide else np.int8),
        }
        if wide:
            attributes["dtype"] = "int16"
        made = self._new_int16(y) if wide else self._new_int8(y)
        self.add("QAdd", (a, b), (made,), attributes, node.name)

    def _operand(self, name):
        """What is added, and its steps."""
        if name in self._int16:
            return self._int16[name], self._streams[name], 0
        scale, zero_point = self._steps[name]
        return self.as_int8(name), scale, int(zero_point)

    def _unary(self, node):
        x, y = node.inputs[0], node.outputs[0]
        if node.attributes["function"] == "identity":
            self._int8[y] = self.as_int8(x)
            return
        table = _table(node.attributes, self._steps[x], self._steps[y])
        inputs = self.as_int8(x), self.constant(f"{node.name} table", table)
        self.add("QTable", inputs, (self._new_int8(y),), {}, node.name)

    def _pool(self, node):
        x, y = node.inputs[0], node.outputs[0]
        names = ("function", "kernel", "strides", "dilations", "count_padding")
        attributes = {k: v for k, v in node.attributes.items() if k in names}
        pads = pads_of(node, self._forms)
        attributes |= {"pads": pads} if any(pads) else {}
        self._add_pool(node, x, self._new_int8(y), y, attributes)

    def _add_pool(self, node, x, made, y, attributes):
        if attributes["function"] == "average":
            (sx, zx), (sy, zy) = self._steps[x], self._steps[y]
            attributes |= {"multiplier": sx / sy, "x_zero_point": zx, "y_zero_point": zy}
        self.add("QPool", (self.as_int8(x),), (made,), attributes, node.name)

    def _mean(self, node):
        x, y = node.inputs[0], node.outputs[0]
        attributes = {"function": "average"}
        if node.attributes.get("keep", True):
            self._add_pool(node, x, self._new_int8(y), y, attributes)
            return
        kept = self.new_name(y)
        self._add_pool(node, x, kept, y, attributes)
        axes = tuple(range(1, len(self._forms[x].shape) - 1))
        self.add("Squeeze", (kept,), (self._new_int8(y),), {"axes": axes}, node.name)

    def _pad(self, node):
        x, pads, _, axes = [*node.inputs, "", "", ""][:4]
        zero = self.constant(f"{node.name} zero", np.int8(self._steps[x][1]))
        made = (self._new_int8(node.outputs[0]),)
        self.add("Pad", (self.as_int8(x), pads, zero, axes), made, node.attributes, node.name)

    def _move(self, node):
        data = node.inputs if node.operator == "Concat" else node.inputs[:1]
        for name in node.inputs[len(data) :]:
            self.as_float(name)  # whole numbers; they are there as they are
        inputs = (*(self.as_int8(name) for name in data), *node.inputs[len(data) :])
        made = tuple(self._new_int8(name) if name else "" for name in node.outputs)
        self.add(node.operator, inputs, made, node.attributes, node.name)


def _limits(function, alpha, beta, steps, dtype=np.int8):
    """Bounds of steps that do what an activation does.

    Where channels have steps of their own none reaches beyond a bound, and it is the last step.
    """
    low, high = {"relu": (0.0, math.inf), "clip": (alpha, beta)}.get(function, (None, None))
    scale, zero_point = steps
    if np.ndim(scale):
        low, high = (None if low is None else 0.0), None
    limits, found = np.iinfo(dtype), {}
    if low is not None and low / np.max(scale) + zero_point > limits.min:
        found["low"] = int(min(np.rint(low / np.max(scale)) + zero_point, limits.max))
    if high is not None and high / scale + zero_point < limits.max:
        found["high"] = int(max(np.rint(high / scale) + zero_point, limits.min))
    return found


def table_noise(attributes, x, x_steps: Steps, y_steps: Steps) -> float:
    """The signal to noise (dB) of a function by its table, steps and all, of these values."""
    exact = functions.apply(
        attributes["function"], x, attributes.get("alpha", 0.0), attributes.get("beta", 0.0)
    ).astype(np.float64)
    q = np.clip(np.rint(x / np.float32(x_steps.scale)) + x_steps.zero_point, -128, 127)
    found = _table(attributes, x_steps, y_steps)[q.astype(np.intp) + 128]
    error = (found.astype(np.float64) - y_steps.zero_point) * y_steps.scale - exact
    noise, signal = (error**2).sum(), (exact**2).sum()
    return float(10 * np.log10(signal / noise)) if noise and signal else math.inf


def _table(attributes, x_steps, y_steps):
    """What a function makes of each int8: (256,) int8."""
    (sx, zx), (sy, zy) = x_steps, y_steps
    x = ((np.arange(-128, 128) - zx) * np.float64(sx)).astype(np.float32)
    with np.errstate(all="ignore"):
        real = functions.apply(
            attributes["function"], x, attributes.get("alpha", 0.0), attributes.get("beta", 0.0)
        )
        q = np.rint(np.nan_to_num(real.astype(np.float64)) / sy) + zy
    return np.clip(q, -128, 127).astype(np.int8)


def _as_unary(activation):
    rest = {k: v for k, v in activation.items() if k != "activation"}
    return {"function": activation["activation"], **rest}
