"""`save` and `load`: the same quantizer comes back, and a file is trusted with nothing."""

import contextlib
import json
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import fastvq
from fastvq import FileFormatError, VectorQuantizer, container
from fastvq._kernels import levels_runnable
from fastvq.vq import _saving
from fastvq.vq._base import BaseQuantizer

X = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "quantizer.fvq"


def reload(quantizer, path):
    quantizer.save(path)
    return fastvq.load(path)


def assert_equal(value, other):
    """Equal in type and to the bit, in lists and dicts as well."""
    assert type(value) is type(other)
    if isinstance(value, (list, tuple)):
        assert len(value) == len(other)
        for item, another in zip(value, other, strict=True):
            assert_equal(item, another)
    elif isinstance(value, dict):
        assert_equal(list(value), list(other))
        assert_equal(list(value.values()), list(other.values()))
    elif isinstance(value, (np.ndarray, np.generic)):
        np.testing.assert_array_equal(value, other, strict=True)
    elif isinstance(value, np.random.RandomState):
        assert_equal(value.get_state(legacy=False), other.get_state(legacy=False))
    elif isinstance(value, np.random.Generator):
        assert_equal(value.bit_generator.state, other.bit_generator.state)
    else:
        assert value == other or value != value


def assert_same_quantizer(quantizer, other, rows=X):
    assert_equal(quantizer.get_params(), other.get_params())
    states = [
        {name: value for name, value in vars(each).items() if name != "_compiled"}
        for each in (quantizer, other)
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert_equal(value, states[1][name])
    codes = quantizer.encode_blocks(rows)
    np.testing.assert_array_equal(other.encode_blocks(rows), codes, strict=True)
    np.testing.assert_array_equal(other.pack(codes), quantizer.pack(codes), strict=True)
    assert quantizer.distortion(rows) == other.distortion(rows)


class ToyQuantizer(BaseQuantizer):
    """Rounds features to integers from 0 to 15; holds attributes of every kind."""

    _saved = ("_private",)
    _code_bits = (4,) * 6
    _code_range = 16
    _codebook_dtype = np.dtype(np.float64)

    def __init__(self, option=None):
        self.option = option

    def fit(self, X, y=None, **attributes):
        self.code_size_, self.n_features_in_ = 3, X.shape[1]
        self._private, self._forgotten = "kept", "not kept"
        vars(self).update(attributes)
        return self

    def _encode(self, rows, codes):
        codes[:] = np.clip(np.rint(rows), 0, 15)

    def _decode(self, codes, out):
        out[:] = codes


class TestVectorQuantizer:
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8"])
    def test_comes_back(self, path, dtype, metric):
        rows = (X * 20 + 100).astype(dtype)
        vq = VectorQuantizer(17, metric=metric, random_state=3).fit(rows)
        again = reload(vq, path)
        assert type(again) is VectorQuantizer
        assert_same_quantizer(vq, again, rows)
        assert not again.codebook_.flags.writeable

    @pytest.mark.parametrize("output", ["codes", "onehot-dense", "distances", "reconstruction"])
    def test_transforms_alike(self, path, output):
        vq = VectorQuantizer(5, output=output, random_state=0).fit(X)
        np.testing.assert_array_equal(reload(vq, path).transform(X), vq.transform(X), strict=True)

    @settings(max_examples=25, deadline=None)
    @given(
        n=st.integers(1, 40),
        d=st.integers(1, 9),
        k=st.integers(1, 300),
        seed=st.integers(0, 99),
        dtype=st.sampled_from(["float32", "float64", "int8"]),
    )
    @pytest.mark.filterwarnings("ignore:X has:sklearn.exceptions.ConvergenceWarning")
    def test_of_any_size(self, tmp_path_factory, n, d, k, seed, dtype):
        rows = (np.random.RandomState(seed).randn(n, d) * 9).astype(dtype)
        vq = VectorQuantizer(k, random_state=seed).fit(rows)
        assert_same_quantizer(vq, reload(vq, tmp_path_factory.mktemp("any") / "vq"), rows)

    def test_feature_names(self, path):
        frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdeé"))
        vq = VectorQuantizer(5, random_state=0).fit(frame)
        again = reload(vq, path)
        assert_same_quantizer(vq, again, frame)
        with pytest.raises(ValueError, match="feature names"):
            again.transform(frame[list("édcba")])

    @pytest.mark.parametrize("n_rows", [3, 50])
    def test_a_stream_goes_on_where_it_was(self, path, n_rows):
        """While codewords are gathered, and after."""
        vq = VectorQuantizer(20, random_state=0).partial_fit(X[:n_rows])
        again = reload(vq, path)
        for each in (vq, again):
            each.partial_fit(X[50:99]).partial_fit(X[99:])
        assert_same_quantizer(vq, again)

    def test_a_fit_after_loading_is_the_same_fit(self, path):
        vq = VectorQuantizer(9, init=X[:9], tol=0.0, random_state=1).fit(X)
        again = reload(vq, path)
        assert_same_quantizer(vq.fit(X[:200]), again.fit(X[:200]))

    def test_what_was_loaded_pickles_clones_and_saves(self, path):
        vq = VectorQuantizer(9, random_state=1).fit(X)
        again = reload(vq, path)
        assert_same_quantizer(pickle.loads(pickle.dumps(again)), vq)
        assert clone(again).get_params() == vq.get_params()
        first = path.read_bytes()
        again.save(path)
        assert path.read_bytes() == first

    def test_of_any_level(self, path, run_python):
        """Made on one, read on another: the codes of the levels with fused multiply-add agree."""
        vq = VectorQuantizer(30, random_state=0).fit(X)
        vq.save(path)
        np.save(path.with_name("X.npy"), X)
        code = (
            "import fastvq, numpy as np\n"
            f"vq = fastvq.load({str(path)!r})\n"
            f"print(vq.transform(np.load({str(path.with_name('X.npy'))!r}))[:, 0].tolist())"
        )
        codes = vq.transform(X)[:, 0].tolist()
        for level in levels_runnable():
            assert json.loads(run_python(code, FASTVQ_LEVEL=level).stdout) == codes

    def test_unfitted(self, path):
        with pytest.raises(NotFittedError):
            VectorQuantizer().save(path)
        assert not path.exists()

    def test_paths(self, tmp_path):
        vq = VectorQuantizer(3, random_state=0).fit(X)
        vq.save(str(tmp_path / "a"))
        vq.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        with pytest.raises(TypeError):
            vq.save(open)


class TestEveryQuantizer:
    """With its defaults: a class that is new needs nothing here."""

    @pytest.fixture(params=[name for name in fastvq.vq.__all__ if name.endswith("Quantizer")])
    def fitted(self, request):
        rows = np.random.default_rng(1).normal(size=(700, 16)).astype(np.float32)
        quantizer = getattr(fastvq, request.param)()
        if "random_state" in quantizer.get_params():
            quantizer.set_params(random_state=0)
        return quantizer.fit(rows), rows

    def test_comes_back(self, fitted, path):
        quantizer, rows = fitted
        again = reload(quantizer, path)
        assert_same_quantizer(quantizer, again, rows)
        codes = quantizer.encode_blocks(rows)
        decoded = quantizer.inverse_transform(codes)
        np.testing.assert_array_equal(again.inverse_transform(codes), decoded, strict=True)

    def test_no_flipped_byte_goes_unnoticed(self, fitted, path):
        quantizer, _ = fitted
        quantizer.save(path)
        whole, expected = path.read_bytes(), container.read(path).tensors
        for place in np.random.default_rng(0).integers(0, len(whole), 100):
            content = bytearray(whole)
            content[place] ^= 1 << (place % 8)
            path.write_bytes(content)
            with contextlib.suppress(FileFormatError):
                assert_equal(container.read(path).tensors, expected)


class TestValues:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            2**200,
            -3,
            1e-300,
            float("nan"),
            float("inf"),
            -float("inf"),
            "text \ud800 é",
            [],
            (),
            [1, (2.5, None), ["a"]],
            {"a": [1], "b": {}},
            np.float32(0.1),
            np.int64(3),
            np.bool_(True),
            np.float64("nan"),
            np.array(5.0),
            np.empty((0, 3), np.float16),
            np.arange(6).reshape(2, 3),
            [np.arange(3), np.ones((2, 2), np.float32)],
            np.array(["x", "yy"], dtype=object),
        ],
        ids=repr,
    )
    def test_come_back_as_parameters_and_attributes(self, path, value):
        toy = ToyQuantizer(option=value).fit(X, value_=value)
        again = reload(toy, path)
        assert_equal(again.option, value)
        assert_equal(again.value_, value)
        assert again._private == "kept" and not hasattr(again, "_forgotten")

    @pytest.mark.parametrize("bits", list(_saving._BIT_GENERATORS.values()))
    @pytest.mark.parametrize("kind", [np.random.RandomState, np.random.Generator])
    def test_generators_go_on_where_they_were(self, path, kind, bits):
        random_state = kind(bits(7))
        random_state.normal(size=5)
        again = reload(ToyQuantizer(option=random_state).fit(X), path).option
        assert_equal(again, random_state)
        np.testing.assert_array_equal(again.normal(size=1000), random_state.normal(size=1000))

    @pytest.mark.parametrize("random_state", [np.random.RandomState(3), np.random.default_rng(3)])
    def test_a_fit_with_a_generator(self, path, random_state):
        vq = VectorQuantizer(9, random_state=random_state).fit(X)
        again = reload(vq, path)
        assert_same_quantizer(vq.fit(X), again.fit(X))

    def test_arrays_in_other_forms_come_back_as_arrays(self, path):
        frame = pytest.importorskip("pandas").DataFrame(X[:4])
        vq = VectorQuantizer(4, init=frame).fit(X)
        np.testing.assert_array_equal(reload(vq, path).init, X[:4])

    @pytest.mark.parametrize(
        "init", [lambda X, k, rng: X[:k], print, [print], np.ones(2, complex), {1: 2}, b"x"]
    )
    def test_code_and_what_else_has_no_place_in_a_file(self, path, init):
        vq = VectorQuantizer(4, random_state=0).fit(X).set_params(init=init)
        with pytest.raises(ValueError, match=r"init=.* cannot be saved .*set_params\(init="):
            vq.save(path)
        assert not path.exists()
        vq.set_params(init="auto").save(path)


class TestClasses:
    def test_one_of_the_users_own(self, path):
        toy = ToyQuantizer(3).fit(X)
        assert type(reload(toy, path)) is ToyQuantizer
        assert container.inspect(path).kind == f"{__name__}.ToyQuantizer"

    def test_one_with_more_of_its_own(self, path):
        class Mine(VectorQuantizer):
            _saved = (*VectorQuantizer._saved, "_extra")

            def __init__(self, n_codewords=256, *, mood="good"):
                super().__init__(n_codewords)
                self.mood = mood

            def fit(self, X, y=None):
                self._extra = self.extra_ = [X[0]]
                return super().fit(X)

        mine = Mine(4, mood="best").fit(X)
        again = reload(mine, path)
        assert type(again) is Mine and again.mood == "best"
        assert_equal(again._extra, mine._extra)
        assert_equal(again.transform(X), mine.transform(X))

    def test_one_that_is_not_loaded(self, path, run_python):
        ToyQuantizer(3).fit(X).save(path)
        code = f"import fastvq; fastvq.load({str(path)!r})"
        error = run_python(code, check=False).stderr
        assert "FileFormatError" in error and "import its module before loading" in error

    def test_all_of_fastvq_are_known(self):
        """By their names alone; and no class is found that is no quantizer."""
        own = {name for name in _saving.kinds() if "." not in name}
        assert own == {name for name in fastvq.vq.__all__ if name.endswith("Quantizer")}


def rewritten(path, edit, kind=None):
    """The file with other attributes and tensors, and right checksums: as an attacker makes it."""
    contents = container.read(path)
    tensors, attributes = dict(contents.tensors), contents.attributes
    edit(tensors, attributes["parameters"], attributes["fitted"])
    container.write(path, kind or contents.kind, tensors, attributes)


def fitted(**values):
    return lambda tensors, parameters, fitted: fitted.update(values)


def parameters(**values):
    return lambda tensors, parameters, fitted: parameters.update(values)


def tensor(name, array):
    return lambda tensors, parameters, fitted: tensors.update({name: array})


def generator(**changes):
    def edit(tensors, parameters, fitted):
        state = parameters["random_state"]["RandomState"]["dict"]
        for name, value in changes.items():
            (state if name in state else state["state"]["dict"])[name] = value

    return edit


HOSTILE = {
    "method": (fitted(fit={"array": "codebook_"}), "knows no fit"),
    "dunder": (fitted(__class__=3), "knows no __class__"),
    "private": (fitted(_compiled=3), "knows no _compiled"),
    "no identifier": (fitted(**{"a b_": 3}), "knows no a b_"),
    "parameter": (parameters(later=3), "knows no later .*later version"),
    "form": (parameters(init={"pickle": "x"}), "pickle"),
    "two forms": (parameters(init={"array": "x", "scalar": "x"}), "unpack"),
    "no tensor": (fitted(codebook_={"array": "nowhere"}), "nowhere"),
    "no codebook": (lambda t, p, f: f.pop("codebook_"), "codebook_"),
    "codebook of text": (fitted(codebook_="text"), "works"),
    "codebook of one row": (tensor("codebook_", np.ones(6)), "works"),
    "codebook of NaN": (tensor("codebook_", np.full((9, 6), np.nan)), "works"),
    "codebook of nothing": (tensor("codebook_", np.ones((0, 6), "f4")), "works"),
    "codebook of other features": (tensor("codebook_", np.ones((9, 7), "f4")), "works"),
    "features": (fitted(n_features_in_=7), "works"),
    "features of text": (fitted(n_features_in_="many"), "n_features_in_"),
    "no features": (fitted(n_features_in_=0), "n_features_in_"),
    "names": (fitted(feature_names_in_={"strings": ["a"]}), "1 feature_names_in_ for 6"),
    "size": (fitted(code_size_=1 << 60), "code_size_ of 1152921504606846976"),
    "metric": (parameters(metric="taxi"), "metric"),
    "deep": (parameters(init=json.loads("[" * 900 + "]" * 900)), "recursion"),
    "position": (generator(pos=10**6), "no position 1000000"),
    "backward position": (generator(pos=-5), "no position -5"),
    "generator": (generator(bit_generator="os.system"), "os.system"),
    "parts": (lambda t, p, f: f.clear(), "works"),
}


class TestHostileFiles:
    """Their checksums are right: what they say must be wrong in a way that is noticed."""

    @pytest.fixture
    def saved(self, path):
        VectorQuantizer(9, random_state=np.random.RandomState(0)).fit(X).save(path)
        return path

    @pytest.mark.parametrize("case", HOSTILE)
    def test_are_refused(self, saved, case):
        edit, said = HOSTILE[case]
        rewritten(saved, edit)
        with pytest.raises(FileFormatError, match=f"(?s)holds no VectorQuantizer that.*{said}"):
            fastvq.load(saved)

    @pytest.mark.parametrize(
        "kind", ["Pipeline", "BaseQuantizer", "os.system", "sklearn.cluster.KMeans", "Vector"]
    )
    def test_of_unknown_kinds(self, saved, kind):
        rewritten(saved, lambda *_: None, kind=kind)
        with pytest.raises(FileFormatError, match=re.escape(f"holds a {kind!r}, which is none of")):
            fastvq.load(saved)

    @pytest.mark.parametrize("attributes", [{}, {"parameters": 1, "fitted": 2}, {"parameters": {}}])
    def test_of_other_attributes(self, saved, attributes):
        container.write(saved, "VectorQuantizer", {}, attributes)
        with pytest.raises(FileFormatError, match="holds no VectorQuantizer that works"):
            fastvq.load(saved)

    def test_a_missing_parameter_has_its_default(self, saved):
        """So files outlive new parameters."""
        rewritten(saved, lambda tensors, parameters, fitted: parameters.pop("tol"))
        assert fastvq.load(saved).tol == VectorQuantizer().tol

    def test_damage_and_absence_pass_through(self, saved):
        content = bytearray(saved.read_bytes())
        content[-1] ^= 1
        saved.write_bytes(content)
        with pytest.raises(FileFormatError, match="does not match its checksum"):
            fastvq.load(saved)
        with pytest.raises(FileNotFoundError):
            fastvq.load(saved.with_name("absent"))
