"""The door: what may come in and in which form it goes on, what is turned away with which words."""

import decimal
import fractions

import numpy as np
import pytest

from fastvq import _validation as door

DTYPES = [dtype.name for dtype in door.KERNEL_DTYPES]


def table(dtype="float32"):
    return np.arange(12, dtype=dtype).reshape(4, 3)


def shares_memory_of(X):
    rows = door.as_rows(X)
    assert type(rows) is np.ndarray
    return np.shares_memory(rows, X)


class TestRows:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_kernel_dtype_is_not_copied(self, dtype):
        X = table(dtype)
        assert door.as_rows(X) is X

    @pytest.mark.parametrize(
        "change",
        [
            np.asfortranarray,
            lambda X: X[::-1],
            lambda X: X[::2, ::2],
            lambda X: X.T,
            lambda X: X[:, ::-1],
            lambda X: np.broadcast_to(X[:1], (5, 3)),
        ],
    )
    def test_any_strides_pass_uncopied(self, change):
        X = change(table())
        assert door.as_rows(X) is X

    def test_read_only_passes_uncopied(self):
        X = table()
        X.flags.writeable = False
        assert door.as_rows(X) is X

    def test_memory_map_is_not_read(self, tmp_path):
        # A file of 400 GB that holds nothing: reading or copying it would be noticed.
        X = np.memmap(tmp_path / "large", np.float32, "w+", shape=(10**10, 10))
        rows = door.as_rows(X)
        assert rows.shape == X.shape and np.shares_memory(rows[:1], X[:1])

    def test_bool_is_uint8_of_the_same_memory(self):
        X = table() > 4
        rows = door.as_rows(X[:, ::2])
        assert rows.dtype == np.uint8 and np.shares_memory(rows, X)
        np.testing.assert_array_equal(rows, X[:, ::2])

    @pytest.mark.parametrize(
        ("dtype", "becomes"),
        [
            ("int16", "float32"),
            ("uint16", "float32"),
            ("int32", "float64"),
            ("uint32", "float64"),
            ("int64", "float64"),
            ("uint64", "float64"),
            ("longdouble", "float64"),
            (">f4", "float32"),
            (">f8", "float64"),
            (">f2", "float16"),
        ],
    )
    def test_other_numbers_are_converted_exactly(self, dtype, becomes):
        rows = door.as_rows(table(dtype))
        assert rows.dtype == np.dtype(becomes) and rows.dtype.isnative
        np.testing.assert_array_equal(rows, table())

    def test_unaligned_memory_is_copied(self):
        packed = np.zeros(4, dtype=np.dtype([("tag", "u1"), ("x", "f4", (3,))]))
        packed["x"] = table()
        rows = door.as_rows(packed["x"])
        assert rows.flags.aligned
        np.testing.assert_array_equal(rows, table())

    @pytest.mark.parametrize("one", [1.5, decimal.Decimal("1.5"), fractions.Fraction(3, 2), True])
    def test_numeric_objects_become_float64(self, one):
        rows = door.as_rows(np.array([[one, 2]], dtype=object))
        assert rows.dtype == np.float64 and rows[0, 0] == float(one)

    def test_missing_objects_become_nan_for_the_kernels_to_find(self):
        rows = door.as_rows(np.array([[None, 1]], dtype=object))
        assert np.isnan(rows[0, 0]) and rows[0, 1] == 1

    @pytest.mark.filterwarnings("ignore:the matrix subclass")
    def test_lists_and_subclasses(self):
        assert door.as_rows([[1, 2], [3, 4]]).dtype == np.float64
        assert door.as_rows(((1.0, 2.0),)).shape == (1, 2)
        assert type(door.as_rows(np.matrix([[1.0, 2.0]]))) is np.ndarray

    def test_what_has_an_array_interface(self):
        class Like:
            def __array__(self, dtype=None, copy=None):
                return table()

        np.testing.assert_array_equal(door.as_rows(Like()), table())

    @pytest.mark.parametrize("library", ["pandas", "polars"])
    def test_frames(self, library):
        frames = pytest.importorskip(library)
        frame = frames.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
        np.testing.assert_array_equal(door.as_rows(frame), [[1, 0.5], [2, 1.5]])

    def test_a_frame_of_one_dtype_is_not_copied(self):
        pandas = pytest.importorskip("pandas")
        X = np.asfortranarray(table())
        assert shares_memory_of(X)
        assert np.shares_memory(door.as_rows(pandas.DataFrame(X, copy=False)), X)

    def test_nullable_columns(self):
        pandas = pytest.importorskip("pandas")
        whole = pandas.DataFrame({"a": pandas.array([1, 2], "Int64"), "b": [0.5, 1.5]})
        np.testing.assert_array_equal(door.as_rows(whole), [[1, 0.5], [2, 1.5]])
        holed = pandas.DataFrame({"a": pandas.array([1, None], "Int64"), "b": [0.5, 1.5]})
        with pytest.raises(ValueError, match="Input X contains NaN"):
            door.as_rows(holed)


class TestRefusedRows:
    @pytest.mark.parametrize(
        ("X", "words"),
        [
            (np.zeros((0, 3)), r"0 sample\(s\) \(shape=\(0, 3\)\) while a minimum of 1"),
            (np.zeros((3, 0)), r"0 feature\(s\) \(shape=\(3, 0\)\) while a minimum of 1"),
            ([], "1D array"),
            (np.zeros(3), r"1D array .*shape \(3,\).*Reshape your data.*reshape\(-1, 1\)"),
            (np.zeros((2, 2, 2)), r"3D array .*shape \(2, 2, 2\)"),
            (np.float32(1), "scalar"),
            ("abc", "text"),
            ([[1, 2], [3]], "ragged"),
            ([[1.0, 2.0], 3.0], "ragged"),
            (np.zeros((2, 2), complex), "Complex data not supported"),
            (np.array([["a", "b"]]), "text"),
            ([[b"a", b"b"]], "text"),
            (np.array([["1", "2"]], dtype=object), "text"),
            (np.array([[10**400, 2]], dtype=object), "objects that are not"),
            (np.ma.masked_greater(table(), 4), "masked"),
        ],
        ids=str,
    )
    def test_value_errors(self, X, words):
        with pytest.raises(ValueError, match=words):
            door.as_rows(X)

    @pytest.mark.parametrize(
        ("X", "words"),
        [
            (np.array([[{}, 1]], dtype=object), "must hold numbers.* string or a real number"),
            (np.array([[1j, 1]], dtype=object), "must hold numbers.*complex"),
            (np.array([["2020-01-01"]], dtype="datetime64[D]"), "datetime64"),
            (np.zeros((2, 2), "timedelta64[s]"), "timedelta64"),
            ({"a": 1}, "dict"),
        ],
        ids=str,
    )
    def test_type_errors(self, X, words):
        with pytest.raises(TypeError, match=words):
            door.as_rows(X)

    @pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_array", "dok_array"])
    def test_sparse_input_is_told_what_to_do(self, kind):
        sparse = pytest.importorskip("scipy.sparse")
        with pytest.raises(TypeError, match=rf"{kind}.*X\.toarray\(\).*TruncatedSVD"):
            door.as_rows(getattr(sparse, kind)(np.eye(3)))

    def test_the_name_is_the_caller_s(self):
        with pytest.raises(ValueError, match="queries is empty"):
            door.as_rows(np.zeros((0, 2)), name="queries")

    def test_record_arrays(self):
        with pytest.raises((TypeError, ValueError)):
            door.as_rows(np.zeros((2, 2), dtype=[("a", "f4")]))


class TestWeights:
    def test_none_stays_none(self):
        assert door.as_weights(None, 3) is None

    @pytest.mark.parametrize("weight", [[1, 2, 0], np.array([1, 2, 0], "uint8"), (1.0, 2.0, 0.0)])
    def test_become_float64(self, weight):
        checked = door.as_weights(weight, 3)
        assert checked.dtype == np.float64 and checked.tolist() == [1, 2, 0]

    def test_a_number_is_for_all_rows(self):
        assert door.as_weights(2, 3).tolist() == [2, 2, 2]

    def test_are_not_copied_in_vain(self):
        weight = np.ones(3)
        assert door.as_weights(weight, 3) is weight

    def test_faint_ones_are_zero(self):
        assert door.as_weights([1, 1e-149, 1e-151, 5e-324], 4).tolist() == [1, 1e-149, 0, 0]

    def test_a_series(self):
        pandas = pytest.importorskip("pandas")
        assert door.as_weights(pandas.Series([1, 2]), 2).tolist() == [1, 2]

    @pytest.mark.parametrize(
        ("weight", "words"),
        [
            ([1, -1, 1], "negative"),
            ([1, np.nan, 1], "NaN or infinite"),
            ([1, np.inf, 1], "NaN or infinite"),
            ([1e308, 1e308, 1], "NaN or infinite"),
            ([0, 0, 0], "zero in every row"),
            ([1e-110, 0, 0], "adds up to 1e-110: multiply"),
            ([1e200, 1, 1], r"adds up to 1e\+200"),
            ([1, 1], r"shape \(3,\), got shape \(2,\)"),
            ([[1], [1], [1]], r"shape \(3,\), got shape \(3, 1\)"),
            (["a", "b", "c"], "text"),
            ([1j, 1, 1], "Complex"),
        ],
    )
    def test_refused(self, weight, words):
        with pytest.raises(ValueError, match=words):
            door.as_weights(weight, 3)


class TestCodes:
    @pytest.mark.parametrize("dtype", [*"bhilBHIL"])
    def test_any_integers(self, dtype):
        codes = door.as_codes(np.array([0, 3, 1], dtype), 4)
        assert codes.shape == (3, 1) and codes.dtype == dtype

    @pytest.mark.parametrize("codes", [[0, 3], [[0], [3]], np.array([0, 3], object)])
    def test_other_forms(self, codes):
        assert door.as_codes(codes, 4).tolist() == [[0], [3]]

    def test_several_columns(self):
        assert door.as_codes(np.zeros((5, 2), int), 4, 2).shape == (5, 2)
        with pytest.raises(ValueError, match=r"shape \(n, 2\), got \(5,\)"):
            door.as_codes(np.zeros(5, int), 4, 2)

    def test_none_at_all(self):
        assert door.as_codes([], 4).shape == (0, 1)

    @pytest.mark.parametrize(
        ("codes", "words"),
        [
            ([0, 4], "from 0 to 3, got values from 0 to 4"),
            ([-1, 0], "from 0 to 3, got values from -1"),
            (np.array([2**63], np.uint64), "from 0 to 3"),
            ([2**70], "64 bits"),
            (np.zeros((2, 2, 2), int), "shape"),
            (np.zeros((2, 3), int), "shape"),
        ],
    )
    def test_out_of_range_or_shape(self, codes, words):
        with pytest.raises(ValueError, match=words):
            door.as_codes(codes, 4)

    @pytest.mark.parametrize("codes", [[0.0, 1.0], [True, False], ["0"], [None], [0, 1.5]])
    def test_other_dtypes(self, codes):
        with pytest.raises(TypeError, match="must be integers"):
            door.as_codes(codes, 4)


class TestLabels:
    """Codes of one column, or one-hot rows."""

    def test_one_hot(self):
        sparse = pytest.importorskip("scipy.sparse")
        hot = np.eye(4)[[2, 0, 3]]
        for form in (hot, hot.astype(bool), hot.astype(int), hot.tolist(), sparse.csr_matrix(hot)):
            assert door.as_labels(form, 4).tolist() == [2, 0, 3]

    def test_a_sparse_caller_s_matrix_is_left_alone(self):
        sparse = pytest.importorskip("scipy.sparse")
        hot = sparse.csr_matrix(([1.0, 0.0], ([0, 0], [1, 2])), shape=(1, 4))
        assert door.as_labels(hot, 4).tolist() == [1] and hot.nnz == 2

    @pytest.mark.parametrize("bad", [[[1, 1]], [[0, 0]], [[0.5, 0.5]], [[2, 0]], [[1, -1]]])
    def test_what_is_not_one_hot(self, bad):
        sparse = pytest.importorskip("scipy.sparse")
        for form in (bad, sparse.csr_array(np.array(bad))):
            with pytest.raises(ValueError, match="one-hot"):
                door.as_labels(form, 2)

    def test_a_single_codeword(self):
        assert door.as_labels(np.zeros((3, 1), int), 1).tolist() == [0, 0, 0]
        assert door.as_labels(np.ones((3, 1)), 1).tolist() == [0, 0, 0]
        with pytest.raises(ValueError, match="Distances cannot be inverted"):
            door.as_labels(np.full((3, 1), 0.25), 1)


class TestCodebooks:
    def test_is_a_copy_in_order_and_dtype(self):
        given = np.asfortranarray(table("float64"))
        codebook = door.as_codebook(given, 4, 3, np.float32)
        assert codebook.dtype == np.float32 and codebook.flags.c_contiguous
        assert not np.shares_memory(codebook, given)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (np.zeros((3, 3)), r"init must have the shape .*\(4, 3\), got \(3, 3\)"),
            (np.full((4, 3), np.nan), "init contains NaN"),
            (np.full((4, 3), 1e300), "too large for <class 'numpy.float32'>"),
            (np.zeros((4, 3), complex), "Complex"),
        ],
    )
    def test_refused(self, given, words):
        with pytest.raises(ValueError, match=words):
            door.as_codebook(given, 4, 3, np.float32)


class TestOut:
    def test_a_new_array(self):
        out = door.as_out(None, (3, 2), np.float32)
        assert out.shape == (3, 2) and out.dtype == np.float32

    def test_one_column_as_a_vector(self):
        given = np.empty(3, np.uint8)
        out = door.as_out(given, (3, 1), np.uint8)
        assert out.shape == (3, 1) and np.shares_memory(out, given)

    @pytest.mark.parametrize(
        "given",
        [
            np.empty((2, 2)),
            np.empty((3, 2), np.float64),
            np.empty((3, 2), ">f4"),
            np.empty((3, 2), np.float32, order="F"),
            np.empty((6, 2), np.float32)[::2],
            np.broadcast_to(np.float32(0), (3, 2)),
        ],
    )
    def test_refused(self, given):
        with pytest.raises(ValueError, match="out must"):
            door.as_out(given, (3, 2), np.float32)

    def test_only_arrays(self):
        with pytest.raises(TypeError, match="out must be a NumPy array, got list"):
            door.as_out([0, 0, 0], (3, 1), np.uint8)


class TestBytes:
    def test_bytes_and_arrays(self):
        packed = np.arange(6, dtype=np.uint8).reshape(3, 2)
        for form in (packed, packed.tobytes(), bytearray(packed), memoryview(packed.tobytes())):
            np.testing.assert_array_equal(door.as_bytes(form, 2), packed)

    @pytest.mark.parametrize("bad", [b"123", np.zeros((3, 3), np.uint8), np.zeros(4, np.uint8)])
    def test_wrong_size(self, bad):
        with pytest.raises(ValueError, match="packed"):
            door.as_bytes(bad, 2)

    def test_wrong_dtype(self):
        with pytest.raises(TypeError, match="int64"):
            door.as_bytes(np.zeros((3, 2), np.int64), 2)


class TestParameters:
    @pytest.mark.parametrize("value", [1, np.int64(1), np.uint8(1)])
    def test_counts(self, value):
        count = door.as_count(value, "n")
        assert count == 1 and type(count) is int

    @pytest.mark.parametrize("value", [0, -1, np.int8(-5)])
    def test_counts_too_small(self, value):
        with pytest.raises(ValueError, match="n must be an integer of at least 1, got"):
            door.as_count(value, "n")

    @pytest.mark.parametrize("value", [1.0, "1", None, True, [1], np.float32(2)])
    def test_counts_of_another_type(self, value):
        with pytest.raises(TypeError, match="n must be an integer"):
            door.as_count(value, "n")

    @pytest.mark.parametrize("value", [-1e-9, np.nan, np.inf])
    def test_numbers_out_of_range(self, value):
        with pytest.raises(ValueError, match="tol must be a finite number of at least 0"):
            door.as_nonnegative(value, "tol")

    @pytest.mark.parametrize("value", ["0", None, 1j, True])
    def test_numbers_of_another_type(self, value):
        with pytest.raises(TypeError, match="tol must be a number"):
            door.as_nonnegative(value, "tol")

    @pytest.mark.parametrize("spelling", ["k-means++", "K-Means++", "kmeans ++", "k_means++"])
    def test_words_in_any_spelling(self, spelling):
        assert door.as_word(spelling, "init", {"random": (), "k-means++": ()}) == "k-means++"

    def test_other_words_for_it(self):
        assert door.as_word("L2", "metric", {"euclidean": ("l2",)}) == "euclidean"

    def test_unknown_words(self):
        with pytest.raises(ValueError, match="init must be one of 'a', 'b' or an array, got 'c'"):
            door.as_word("c", "init", {"a": (), "b": ()}, " or an array")
        with pytest.raises(TypeError, match="init must be one of 'a', got 3"):
            door.as_word(3, "init", {"a": ()})


class TestMemory:
    @pytest.mark.parametrize("shape", [(10**13, 4), (10**18, 10**3), (2**62, 2**62)])
    def test_what_cannot_be_had_is_said(self, shape):
        with pytest.raises(MemoryError, match="codebook_, .* of float32, needs .* GB"):
            door.allocate(shape, np.float32, "codebook_")
