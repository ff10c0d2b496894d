"""A model on its way to 8-bit integers: which layers become such, in which steps, and the making.

:class:`fastvq.compress.ModelQuantizer` is what users see of it.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import numpy as np

from fastvq import _threads
from fastvq.compress import moments, passes, sensitivity, stats
from fastvq.compress.schemes import costs, forests, int8, int8_dynamic, int8_static
from fastvq.compress.schemes import steps as steps_
from fastvq.compress.scores import plain, scores
from fastvq.compress.weights import compared
from fastvq.runtime import CompressedModel, Graph, Value
from fastvq.runtime.encoding import Raw, decoded
from fastvq.runtime.layout import forms as forms_of
from fastvq.runtime.measure import compare
from fastvq.runtime.ops import operators
from fastvq.runtime.plan import Plan

__all__ = ["Fitting"]

_SMALL = 1024  # weights that are not worth storing as integers for their size alone
# How many times as quick as floats a layer is in integers at least, or it is multiplied in floats:
# where int8 flows, that takes conversions on both sides.
_LEAST_GAIN = {"dynamic": 0.9, "static": 0.6}
_GROSS = 12.0  # dB: a layer whose own integers are noisier than this is not made of integers
_HARM = 0.5  # of the mean harm of layers: what does more is tried in steps of rows
_ROUNDS = 2  # of that: then others do much
_WORTH = 0.5  # of its harm that a layer may do at most then, to be made so
_COARSE = 32.0  # dB: a function whose table is noisier than this stays float
_NOISY = 30.0  # dB: a dense layer noisier than this reads features that are made of equal size
_ALIKE = 1e-6  # share of noise that making them so may bring into the float model
_SAMPLED = 1 << 25  # bytes of a layer's values that its own error is measured on
_USUAL = (1, 32)  # rows of a call that layers' costs are looked up for
_ROWS = 1 << 13  # of a layer's inputs that its moments are taken of: 8 bits need no more


class Fitting:
    """A model on its way: what is known of its values, and what becomes of each layer.

    Attributes
    ----------
    scheme : dict of a layer's first output to "int8", "int8 weights" or "float32"
    ranges : dict of value name to Statistics
    harm : dict of a layer's first output to the noise that it alone makes of outputs, as a share;
        empty where that was not asked of each, as all together make little
    """

    def __init__(self, settings, graph, arrays, mask=None):
        self._settings, self._arrays, self._mask = settings, arrays, mask
        self._threads = _threads.effective(settings.n_threads)
        self._sizes: dict[str, np.ndarray] = {}
        self._features: dict[str, tuple] = {}
        self.ranges: dict[str, stats.Statistics] = {}
        self._known = int8.Knowledge()
        self.scheme: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._noise: dict[str, float] = {}
        self.harm: dict[str, float] = {}
        self._by_row: set[str] = set()
        self._apart: set[str] = set()
        self._observe_norms(passes.prepared(graph))
        self._given = graph
        self._take(graph)

    def _take(self, graph):
        """The float graph that is to be rounded."""
        graph = passes.prepared(graph)
        if self._settings.equalize:
            graph = passes.equalised(graph)
        if self._sizes:
            graph = passes.smoothed(graph, self._sizes, self._settings.smoothing)
        if self._features:
            graph = passes.centred(graph, self._features)
        self.graph = graph
        self.candidates = int8.candidates(graph, self._settings.activations)

    def for_graph(self, graph):
        """The same decisions and ranges, for a graph with other weights."""
        other = object.__new__(Fitting)
        other.__dict__.update(self.__dict__)
        other._take(graph)
        if _structure(other.graph) != _structure(self.graph):
            raise ValueError("this model has other layers than the one that was fitted")
        return other

    def first_rows(self):
        return None if self._arrays is None else tuple(a[:2] for a in self._arrays)

    # ---- what becomes of layers ------------------------------------------------------------------

    def decide(self):
        """A scheme for every layer with weights."""
        forms = [forms_of(self.graph, rows) for rows in _USUAL]
        for key, node in self.candidates.items():
            self.scheme[key] = "int8"
            if any(fnmatchcase(node.name, pattern) for pattern in self._settings.keep):
                self._stay(key, "float32", "kept by name")
            else:
                self._weigh(key, node, forms)
        if self._arrays is None:
            return
        self._calibrate()
        if self._settings.activations == "static":
            self._apart = self._coarse_tables()
            self.harm = self._harm_of(self._integer(), False)
            self._relieve()
        self._measure()
        self._even_out()
        if not self.harm and self._harm_of_all() > 10 ** (-_GROSS / 10):
            self.harm = self._harm_of(self._integer(), False)
        for key, noise in self._noise.items():
            noise = min(noise, _decibels(self.harm.get(key, 0.0)))
            if noise < _GROSS and self.scheme[key] == "int8":
                self._stay(key, "float32", f"{noise:.1f} dB in integers")

    def _weigh(self, key, node, forms):
        """Whether a layer is worth multiplying in integers, by the table of costs."""
        gain = costs.gain_of(node, forms, self._settings.activations)
        weight = self.graph.constants.get(node.inputs[1])
        size = math.prod(weight.shape) if weight is not None else math.inf
        if node.operator == "Dense" and size < _SMALL and (gain is None or gain <= 1):
            self._stay(key, "float32", f"fewer than {_SMALL} weights: nothing to gain")
        elif gain is not None and gain < _LEAST_GAIN[self._settings.activations]:
            scheme = "int8 weights" if size >= _SMALL else "float32"
            self._stay(key, scheme, f"{gain:.2f} times as quick in integers")

    def _stay(self, key, scheme, reason):
        self.scheme[key], self._reasons[key] = scheme, reason

    def within(self, most, metadata, whole, y):
        """The model with as many of the worst layers as float as it takes to lose no more."""
        inputs = self._arrays

        def lost(small):
            found = scores(whole, small, inputs, y, self._settings.score)
            return found["before"] - found["after"]

        small = self.model(metadata)
        if lost(small) <= most:
            return small
        chosen, reasons = dict(self.scheme), dict(self._reasons)
        self.harm = self.harm or self._harm_of(self._integer(), False)
        worst = sorted(
            (k for k, s in chosen.items() if s != "float32"), key=lambda k: -self.harm.get(k, 0.0)
        )

        def without(count):
            self.scheme, self._reasons = dict(chosen), dict(reasons)
            for key in worst[:count]:
                self._stay(key, "float32", f"max_drop={most}")
            return self.model(metadata)

        enough, too_few = len(worst), 0
        while enough - too_few > 1:  # as if every layer that stays float could only help
            middle = (enough + too_few) // 2
            if lost(without(middle)) <= most:
                enough = middle
            else:
                too_few = middle
        return without(enough)

    # ---- what is known of values -----------------------------------------------------------------

    def _observe_norms(self, graph):
        norms = passes.smoothed_norms(graph)
        if self._settings.smoothing is None or self._arrays is None or not norms:
            return
        names = [norm.outputs[0] for norm, _ in norms]
        seen = stats.observe(
            graph, self._arrays, names, histograms=False, n_threads=self._threads, mask=self._mask
        )
        self._sizes = {name: np.maximum(-s.channel_low, s.channel_high) for name, s in seen.items()}

    def _calibrate(self):
        wanted = [node.inputs[0] for node in self.candidates.values()]
        if self._settings.activations == "static":
            wanted += self._static(self.graph, self.candidates).watched
            wanted += [n for node in self.candidates.values() for n in node.inputs[:2]]
            wanted = [name for name in wanted if name not in self.graph.constants]
        histograms = self._settings.activations == "static" and self._settings.calibration in (
            *("percentile", "mse", "entropy"),
        )
        self.ranges = stats.observe(
            self.graph, self._arrays, wanted, histograms=histograms, n_threads=self._threads,
            mask=self._mask,
        )  # fmt: skip
        means, grams = {}, {}
        if self._settings.bias_correction:
            means = {
                name: (seen.channel_mean, seen.mean_variance) for name, seen in self.ranges.items()
            }
        if self._settings.compensate:
            layers = [
                node for key, node in self.candidates.items()
                if node.operator in ("Dense", "Conv") and self.scheme[key] == "int8"
            ]  # fmt: skip
            grams = moments.grams(
                self.graph, self._arrays, layers, self.ranges, self._threads, _ROWS, self._mask
            )
        self._known = int8.Knowledge(means, grams)

    def _coarse_tables(self):
        """What functions give whose tables would be too coarse, as GELU's of a wide range is."""
        found, method = set(), self._settings.calibration
        for node in self.graph.nodes:
            x, y = (self.ranges.get(name) for name in (node.inputs[:1] + node.outputs)[:2])
            if node.operator != "Unary" or x is None or y is None:
                continue
            steps = [steps_.whole_steps(seen, method, False) for seen in (x, y)]
            (values,) = next(self._sampled([node.inputs[0]]))
            if int8_static.table_noise(node.attributes, values, *steps) < _COARSE:
                found.add(node.outputs[0])
        return found

    def _integer(self):
        """The layers that are integer, as things stand."""
        return [key for key, scheme in self.scheme.items() if scheme == "int8"]

    def _harm_of(self, keys, by_row):
        """What each of these layers, alone in integers, does to the outputs."""
        return self._damages({key: {key} for key in keys}, by_row)

    def _harm_of_all(self):
        """What they do together: where that is little, none does much, and one run tells it."""
        chosen = {*self._integer()}
        ways = {"all": chosen} if chosen else {}
        return max(self._damages(ways, False).values(), default=0.0)

    def _damages(self, chosen, by_row):
        def made(keys):
            return lambda: self._written(self.graph, keys, (), keys if by_row else ()).graph

        ways = {key: made(keys) for key, keys in chosen.items()}
        return sensitivity.damages(self.graph, self._arrays, ways, self._threads) if ways else {}

    def _relieve(self):
        """Let static layers that do much of all harm find their steps as they run, where that does
        clearly less; products of activations, whose steps are static or none, stay float."""
        for _ in range(_ROUNDS):
            harm = {key: h for key, h in self.harm.items() if self.scheme[key] == "int8"}
            much = _HARM * sum(harm.values()) / max(len(harm), 1)
            worst = [key for key in harm if harm[key] > much and key not in self._by_row]
            layers = [key for key in worst if self.candidates[key].operator in ("Dense", "Conv")]
            for key, found in self._harm_of(layers, True).items():
                if found < _WORTH * harm[key]:
                    self._by_row.add(key)
                    self._reasons[key] = f"steps of rows: {_decibels(harm[key]):.0f} dB without"
                    self.harm[key] = found
            for key in worst:
                if self.candidates[key].operator == "MatMul" and len(harm) > 1:
                    self._stay(key, "float32", f"{_decibels(harm[key]):.0f} dB of outputs")

    def _measure(self):
        """SQNR of every layer in integers by itself, on a sample of what it reads."""
        for key, node in self.candidates.items():
            data = [n for n in node.inputs[:2] if n not in self.graph.constants]
            values = next(self._sampled([*data, key]))
            *inputs, wanted = values
            alone = Graph(
                [node],
                [Value(name, "float32", a.shape) for name, a in zip(data, inputs, strict=True)],
                [Value(key, "float32", wanted.shape)],
                {name: self.graph.constants[name] for name in node.inputs[len(data) :] if name},
            )
            small = self._written(alone, {key}, (), self._by_row).graph
            shapes = {name: a.shape for name, a in zip(data, inputs, strict=True)}
            (found,) = Plan(small, shapes, {}, self._threads).run(inputs)
            found, wanted = (stats.counted(a, self._places) for a in (found, wanted))
            self._noise[key] = compare([found], [key], [wanted]).column("SQNR dB")[0]

    def _even_out(self):
        """Give noisy dense layers features of equal size, and look again."""
        self._features = {
            key: (seen.channel_low, seen.channel_high)
            for key, node in self.candidates.items()
            if self._noise[key] < _NOISY and node.operator == "Dense" and self.scheme[key] == "int8"
            for seen in [self.ranges.get(node.inputs[0])]
            if seen is not None
            and len(seen.channel_low) == self.graph.constants[node.inputs[1]].shape[-1]
        }
        if not self._features:
            return
        uneven, self.graph = self.graph, passes.centred(self.graph, self._features)
        ways = {"even": lambda: self.graph}
        noise = sensitivity.damages(uneven, self._arrays, ways, self._threads)
        if max(noise.values(), default=0.0) > _ALIKE:
            self.graph, self._features = uneven, {}  # what float32 cannot tell beside the largest
            return
        self._take(self._given)
        del self._sample
        self._calibrate()
        self._measure()
        for by_row in (False, True) if self.harm else ():
            keys = [key for key in self._features if (key in self._by_row) == by_row]
            self.harm |= self._harm_of(keys, by_row)

    def _sampled(self, names):
        """Values on the first rows, as many as memory allows; those of functions too."""
        if not hasattr(self, "_sample"):
            every = [*self.candidates]
            every += [n for node in self.candidates.values() for n in node.inputs[:2]]
            every += [n.inputs[0] for n in self.graph.nodes if n.operator == "Unary"
                      and n.inputs[0] in self.ranges]  # fmt: skip
            every = [n for n in dict.fromkeys(every) if n not in self.graph.constants]
            one = next(stats.batches_of(self.graph, self._arrays, 1))
            size = sum(a.nbytes for a in next(stats.runs(self.graph, one, every, self._threads)))
            rows = int(max(1, min(64, _SAMPLED // max(size, 1))))
            some = next(stats.batches_of(self.graph, self._arrays, rows))
            runs = stats.masked_runs(self.graph, some, every, self._threads, self._mask)
            self._places, found = next(runs)
            self._sample = dict(zip(every, found, strict=True))
        yield [self._sample[name] for name in names]

    # ---- making ----------------------------------------------------------------------------------

    def model(self, metadata) -> CompressedModel:
        """The model as decided."""
        integer = {*self._integer()}
        written = self._written(self.graph, integer, self._alone(), self._by_row)
        layers = {
            key: [layer["scheme"], layer["reason"], plain(layer["SQNR dB"])]
            for key, layer in self._layers()
        }
        readers = {node.inputs[1]: key for key, node in self.candidates.items()}
        tensors = {}
        for name, encoded in written.weights.items():
            weight = decoded(self.graph.constants[name])
            row = compare([encoded.decode()], [name], [weight])
            noise = plain(row.column("SQNR dB")[0])
            tensors[written.stored[name]] = [weight.nbytes, noise, readers.get(name)]
        settings = self._settings
        trees = forests.stored(written.graph, self._arrays, settings.max_drop)
        for name, (encoded, layer) in trees.items():
            before = written.graph.constants[name]
            row = compare([encoded.decode()], [name], [decoded(before)])
            tensors[name] = [before.nbytes, plain(row.column("SQNR dB")[0]), layer]
        graph = written.graph.with_constants({name: e for name, (e, _) in trees.items()})
        known = {
            "scheme": settings.scheme,
            "activations": settings.activations,
            "calibration": settings.calibration if settings.activations == "static" else None,
            "granularity": settings.granularity,
            "settings": self._switches(),
            "layers": layers,
            "tensors": tensors,
        }
        self.written = written
        metadata = {**metadata, "compression": known}
        return CompressedModel(graph, metadata, n_threads=settings.n_threads)

    def _switches(self):
        """What was done to lose less, for the report."""
        settings, static = self._settings, self._settings.activations == "static"
        return {
            "activations": f"static, {settings.calibration}" if static else "dynamic",
            "steps of values": f"by {settings.steps}" if static else "by row",
            "values that are added": settings.skips if static else "float32",
            "errors compensated": bool(self._known.grams),
            "biases corrected": bool(self._known.means),
            "channels equalised": bool(settings.equalize),
            "norms smoothed": settings.smoothing if self._sizes else None,
        }

    def _written(self, graph, integer, stored, by_row):
        granularity = self._settings.granularity
        if self._settings.activations == "dynamic":
            return int8_dynamic.dynamic(graph, integer, stored, granularity, self._known)
        static = self._static(graph, integer, stored, by_row)
        return static.write(self.ranges, self._settings.calibration, self._known)

    def _static(self, graph, integer, stored=(), by_row=()):
        settings = self._settings
        return int8_static.Static(
            graph, integer, stored, settings.granularity, settings.skips, settings.steps,
            by_row, self._apart,
        )  # fmt: skip

    def _alone(self):
        """Names of weights that are stored as int8, and multiplied as floats."""
        found, exact = set(), compared(self.graph)
        uses: dict[str, list] = {}
        for node in self.graph.nodes:
            for place, name in enumerate(node.inputs):
                weights = operators()[node.operator].weights
                uses.setdefault(name, []).append((node, place in weights))
        given = {value.name for value in self.graph.outputs}
        for name, tensor in self.graph.constants.items():
            readers = uses.get(name, [])
            if not _worth_storing(tensor) or (name in given and readers):
                continue
            if any(not exact.isdisjoint(node.outputs) for node, _ in readers):
                continue
            if all(w and self._is_storable(n) for n, w in readers):
                found.add(name)
        return found

    def _is_storable(self, node):
        """Whether weights of a node that is no integer layer may be int8."""
        if node.outputs[0] in self.candidates:
            return self.scheme.get(node.outputs[0]) == "int8 weights"
        return node.operator != "Gather" or node.attributes.get("axis", 0) == 0

    def layers(self):
        """What became of each layer."""
        return [layer for _, layer in self._layers()]

    def _layers(self):
        alone = self._alone()
        for node in self.graph.nodes:
            key, noise = node.outputs[0], self._noise.get(node.outputs[0])
            if key in self.candidates:
                scheme, reason = self.scheme[key], self._reasons.get(key, "")
            elif any(name in alone for name in node.inputs):
                scheme, reason = "int8 weights", f"no integer {node.operator}"
            else:
                continue
            yield (
                key,
                {
                    "layer": node.name,
                    "operator": node.operator,
                    "scheme": scheme,
                    "reason": reason,
                    "SQNR dB": noise if scheme == "int8" else None,
                },
            )

    def restored(self, compressed):
        """The float graph with the weights of a small model."""
        constants = dict(self.graph.constants)
        for name, encoded in self.written.weights.items():
            constants[name] = Raw(np.array(encoded.decode()))
            stored = compressed.graph.constants.get(self.written.stored[name])
            if stored is None:
                if self.written.stored[name] not in self.written.graph.constants:
                    continue  # made of another constant when the model starts
                raise ValueError("this model was not made by this quantizer")
            if isinstance(stored, Raw) and stored.values.dtype == np.int8:
                if isinstance(encoded, int8.Rounded):
                    encoded = encoded._replace(values=stored.values)
                elif isinstance(encoded, int8.Affine):
                    encoded = int8.Affine(stored.values, encoded.scales)
                constants[name] = Raw(np.array(encoded.decode()))
        graph = Graph(self.graph.nodes, self.graph.inputs, self.graph.outputs, constants)
        metadata = {k: v for k, v in compressed.metadata.items() if k != "compression"}
        return CompressedModel(graph, metadata, n_threads=compressed.n_threads)


def _decibels(share):
    return -10 * math.log10(share) if share > 0 else math.inf


def _worth_storing(tensor):
    return (
        isinstance(tensor, Raw)
        and tensor.values.dtype == np.float32
        and len(tensor.shape) >= 2
        and math.prod(tensor.shape) >= _SMALL
        and bool(np.isfinite(tensor.values).all())
    )


def _structure(graph):
    constants = {name: (c.shape, c.dtype) for name, c in graph.constants.items()}
    return [(n.operator, n.inputs, n.outputs) for n in graph.nodes], constants
