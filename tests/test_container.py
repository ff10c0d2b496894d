"""Files of arrays: what was written comes back, and anything else is refused in words."""

import json
import os
import re
import resource
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, from_dtype
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fastvq
from fastvq import FileFormatError, container
from fastvq.container import find_damage, inspect, read, write

DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
ATTRIBUTES = {"n": 3, "tol": 1e-4, "none": None, "deep": [1, [2.5, {"é": "\ud800"}]], "yes": True}


def some_tensors():
    rng = np.random.default_rng(0)
    tensors = {f"t{dtype}": rng.integers(0, 2, (3, 5)).astype(dtype) for dtype in DTYPES}
    tensors["odd values"] = np.array([np.nan, -0.0, np.inf, 5e-324])
    tensors["zero-d"] = np.array(7, "i2")
    tensors["empty"] = np.empty((4, 0, 2), "f4")
    return tensors


def same(array, other):
    """Equal to the bit, NaN and −0 included."""
    assert array.shape == other.shape
    return array.dtype == other.dtype.newbyteorder("=") and array.tobytes() == other.astype(
        other.dtype.newbyteorder("=")
    ).tobytes(order="C")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.fvq"


@pytest.fixture
def small(path):
    """A file of two tensors; its bytes are taken apart and spoilt."""
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}
    write(path, "Kind", tensors, {"x": [1.5, "y"]})
    return path


def split(path):
    """The header of a file, parsed, and the bytes that follow it."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path, header, data, *, sign=True, text=None):
    """Make a file of these parts, with a right checksum of the metadata if `sign`."""
    metadata = header.get("__metadata__")
    if sign and isinstance(metadata, dict):
        metadata["checksum"] = container._metadata_digest(metadata)
    text = json.dumps(header).encode() if text is None else text
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


class TestRoundTrip:
    def test_everything_comes_back(self, path):
        tensors = some_tensors()
        write(path, "Kind", tensors, ATTRIBUTES)
        contents = read(path)
        assert contents.kind == "Kind" and contents.attributes == ATTRIBUTES
        assert contents.tensors.keys() == tensors.keys()
        for name, array in contents.tensors.items():
            assert same(array, tensors[name]), name
            assert not array.flags.writeable and array.flags.c_contiguous and array.flags.aligned

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_layouts_and_byte_orders(self, path, dtype, order):
        dtype = np.dtype(dtype).newbyteorder(order)
        table = np.random.default_rng(0).integers(0, 100, (6, 8)).astype(dtype)
        forms = {
            "Fortran": np.asfortranarray(table),
            "strided": table[::2, ::3],
            "reversed": table[::-1, ::-1],
            "transposed": table.T,
            "broadcast": np.broadcast_to(table[:1], (3, 8)),
            "unaligned": np.frombuffer(b"x" + table.tobytes(), dtype, offset=1),
        }
        write(path, "Kind", forms, {})
        tensors = read(path).tensors
        assert all(same(tensors[name], array) for name, array in forms.items())

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_any_arrays(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("any") / "file"
        names = st.text("abc.-_ é0", min_size=1, max_size=5).filter(lambda name: ".." not in name)
        kinds = st.sampled_from(DTYPES).map(np.dtype)
        shapes = array_shapes(min_dims=0, min_side=0, max_side=5)
        array = kinds.flatmap(lambda dtype: arrays(dtype, shapes, elements=from_dtype(dtype)))
        tensors = data.draw(st.dictionaries(names, array, max_size=4))
        write(path, "Kind", tensors, {})
        found = read(path).tensors
        assert found.keys() == tensors.keys()
        assert all(same(found[name], tensors[name]) for name in tensors)

    def test_the_safetensors_library_reads_it(self, path):
        tensors = some_tensors()
        write(path, "Kind", tensors, ATTRIBUTES)
        theirs = load_file(path)
        assert theirs.keys() == tensors.keys()
        assert all(same(theirs[name], tensors[name]) for name in tensors)
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        assert metadata["format"] == "fastvq" and metadata["kind"] == "Kind"
        assert json.loads(metadata["attributes"]) == ATTRIBUTES

    def test_a_copy_by_the_safetensors_library_is_still_ours(self, small, path):
        """Checksums are of what is meant, not of the order that it lies in."""
        with safe_open(small, "np") as file:
            metadata = file.metadata()
        copy = path.with_name("copy")
        save_file(load_file(small), copy, metadata)
        ours = read(small)
        assert read(copy).kind == ours.kind and read(copy).attributes == ours.attributes
        assert all(same(read(copy).tensors[name], ours.tensors[name]) for name in ours.tensors)

    def test_tensors_lie_aligned(self, path):
        write(path, "Kind", some_tensors(), {})
        for info in inspect(path).tensors.values():
            assert info.start % info.dtype.itemsize == 0

    def test_the_bytes_are_little_endian_and_do_not_depend_on_the_order_of_names(self, path):
        native, swapped = np.arange(5, dtype="<f4"), np.arange(5, dtype=">f4")
        write(path, "Kind", {"a": native, "b": native}, {})
        first = path.read_bytes()
        write(path, "Kind", {"b": swapped, "a": swapped}, {})
        assert path.read_bytes() == first and first.endswith(native.tobytes())

    def test_what_inspect_tells(self, small):
        summary = inspect(small)
        assert summary.kind == "Kind" and summary.attributes == {"x": [1.5, "y"]}
        assert summary.fastvq_version == fastvq.__version__
        assert summary.format_version == container.FORMAT_VERSION
        assert summary.nbytes == os.path.getsize(small)
        assert {name: info[:2] + info[3:4] for name, info in summary.tensors.items()} == {
            "a": (np.dtype("<f4"), (2, 3), 24),
            "b": (np.dtype("?"), (2,), 2),
        }

    def test_paths_of_both_kinds(self, path):
        write(str(path), "Kind", {}, {})
        assert read(path) == read(str(path)) == ("Kind", {}, {})

    def test_it_needs_numpy_alone(self, small, run_python):
        code = (
            "import sys; from fastvq import container\n"
            f"container.read({str(small)!r})\n"
            "assert not {'sklearn', 'scipy', 'safetensors'} & set(sys.modules)"
        )
        run_python(code)


class TestWhatCannotBeWritten:
    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (np.ones(2, complex), "complex128"),
            (np.array(["a"]), "<U1"),
            (np.array([None]), "object"),
            (np.array(["2001-01-01"], "M8[D]"), "datetime64"),
            (np.ones(2, np.longdouble), str(np.dtype(np.longdouble))),
            (np.zeros(2, "V2"), "V2"),  # bfloat16 as NumPy sees it
            (np.zeros(2, "i4,f4"), "i4"),
        ],
    )
    def test_dtypes(self, path, array, said):
        with pytest.raises(TypeError, match=f"tensor 'x' has dtype .*{re.escape(said)}"):
            write(path, "Kind", {"x": array}, {})
        assert not path.exists()

    def test_bfloat16(self, path):
        with pytest.raises(TypeError, match="bfloat16.*view it as uint16"):
            write(path, "Kind", {"x": np.ones(2, ml_dtypes.bfloat16)}, {})

    @pytest.mark.parametrize(
        "name", ["", "a/b", "a\\b", "..", "a..b", "a\0", "a\nb", "\u202e", "\ud800", "a" * 257, 3]
    )
    def test_names(self, path, name):
        with pytest.raises(TypeError, match="name of a tensor must"):
            write(path, "Kind", {name: np.ones(1)}, {})
        with pytest.raises(TypeError, match="kind must"):
            write(path, name, {}, {})

    def test_the_name_that_the_format_needs(self, path):
        with pytest.raises(ValueError, match="__metadata__"):
            write(path, "Kind", {"__metadata__": np.ones(1)}, {})

    @pytest.mark.parametrize(
        "attributes",
        [
            {"x": float("nan")},
            {"x": float("-inf")},
            {"x": (1, 2)},
            {"x": {1: 2}},
            {1: 2},
            {"x": np.float32(1)},
            {"x": object()},
            {"x": b"bytes"},
            [1],
            None,
        ],
    )
    def test_attributes(self, path, attributes):
        with pytest.raises(TypeError, match="attributes"):
            write(path, "Kind", {}, attributes)

    def test_attributes_nested_too_deeply(self, path):
        nested = []
        for _ in range(100_000):
            nested = [nested]
        with pytest.raises(TypeError, match="attributes"):
            write(path, "Kind", {}, {"x": nested})

    def test_more_attributes_than_a_header_may_have(self, path):
        with pytest.raises(ValueError, match="limit"):
            write(path, "Kind", {}, {"x": "a" * (1 << 24)})


class TestAllOrNothing:
    def test_an_error_leaves_the_old_file(self, small, monkeypatch):
        before = small.read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(
            container, "_bytes_of", lambda array, real=container._bytes_of: real(array)
        )
        for place in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(os, place, full)
                with pytest.raises(OSError, match="No space"):
                    write(small, "Kind", {"a": np.ones(5)}, {})
        assert small.read_bytes() == before
        assert os.listdir(small.parent) == [small.name]

    def test_a_full_disk(self, small):
        """A limit on the size of files stands for it: writes beyond it fail in the same way."""
        before = small.read_bytes()
        code = (
            "import numpy as np; from fastvq import container\n"
            f"container.write({str(small)!r}, 'Kind', {{'a': np.ones(1_000_000)}}, {{}})"
        )
        limit = 1 << 20
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert result.returncode == 1 and "OSError" in result.stderr
        assert small.read_bytes() == before
        assert os.listdir(small.parent) == [small.name]

    def test_places_that_cannot_be_written(self, tmp_path):
        with pytest.raises(ValueError, match="no folder"):
            write(tmp_path / "absent" / "file", "Kind", {}, {})
        with pytest.raises(ValueError, match="not a plain file"):
            write(tmp_path, "Kind", {}, {})


class TestDamage:
    def test_no_flipped_bit_goes_unnoticed(self, small):
        """Each byte of the file, each bit of it: an error, or the same content."""
        whole, expected = small.read_bytes(), read(small)
        for place in range(len(whole)):
            for bit in range(8):
                content = bytearray(whole)
                content[place] ^= 1 << bit
                self.refused_or_equal(small, bytes(content), expected)

    def test_no_truncation_goes_unnoticed(self, small):
        whole = small.read_bytes()
        for length in range(len(whole)):
            small.write_bytes(whole[:length])
            for look in (read, inspect, find_damage):
                with pytest.raises(FileFormatError, match=f"^{re.escape(str(small))}: "):
                    look(small)

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_nor_does_anything_else(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("damage") / "file"
        write(path, "Kind", {"a": np.arange(40.0), "b": np.arange(3, dtype=np.uint8)}, ATTRIBUTES)
        whole, expected = path.read_bytes(), read(path)
        start = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(start, min(len(whole), start + 40)))
        content = whole[:start] + data.draw(st.binary(max_size=40)) + whole[end:]
        self.refused_or_equal(path, content, expected)

    @settings(max_examples=100, deadline=None)
    @given(content=st.binary(max_size=300))
    def test_files_of_nothing_but_noise(self, tmp_path_factory, content):
        path = tmp_path_factory.mktemp("noise") / "file"
        for prefix in (b"", len(content).to_bytes(8, "little")):
            path.write_bytes(prefix + content)
            with pytest.raises(FileFormatError):
                read(path)

    @staticmethod
    def refused_or_equal(path, content, expected):
        path.write_bytes(content)
        try:
            found = read(path)
        except FileFormatError:
            return
        assert found[0::2] == expected[0::2] and found.tensors.keys() == expected.tensors.keys()
        for name, array in expected.tensors.items():
            assert same(found.tensors[name], array)

    def test_the_error_names_the_tensor(self, small):
        header, data = split(small)
        join(small, header, data[:-1] + b"\1")
        with pytest.raises(FileFormatError, match="tensor 'b' does not match its checksum"):
            read(small)
        assert find_damage(small) == ["b"]
        assert inspect(small).kind == "Kind"

    def test_find_damage_reads_block_by_block(self, path):
        write(path, "Kind", {"a": np.arange(1 << 20), "b": np.arange(1 << 19)}, {})
        tracemalloc.start()
        assert find_damage(path) == []
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 << 20


def change(edit):
    """A way to spoil a file: edit its header, and sign the metadata anew."""

    def spoil(path):
        header, data = split(path)
        data = edit(header, data) or data
        join(path, header, data)

    return spoil


def set_entry(**fields):
    return change(lambda header, data: header["a"].update(fields))


def set_metadata(**fields):
    def edit(header, data):
        header["__metadata__"].update(fields)

    return change(edit)


def rename(new):
    def edit(header, data):
        header[new] = header.pop("a")
        checksums = json.loads(header["__metadata__"]["checksums"])
        checksums[new] = checksums.pop("a")
        header["__metadata__"]["checksums"] = json.dumps(checksums)

    return change(edit)


def text(make):
    """A way to spoil a file: its header's text, before any of it is parsed."""

    def spoil(path):
        header, data = split(path)
        join(path, header, data, text=make(json.dumps(header).encode()))

    return spoil


def place(start, end):
    return set_entry(data_offsets=[start, end])


HOSTILE = {
    "shape times dtype is not its place": (set_entry(shape=[2, 4]), "takes 32 bytes, its place"),
    "another dtype": (set_entry(dtype="F64"), "takes 48 bytes, its place has 24"),
    "another dtype of that size": (set_entry(dtype="I32"), "'a' does not match its checksum"),
    "another shape of that size": (set_entry(shape=[3, 2]), "'a' does not match its checksum"),
    "unknown dtype": (set_entry(dtype="F128"), "has dtype 'F128'"),
    "bfloat16": (set_entry(dtype="BF16"), "has dtype 'BF16', which NumPy does not have"),
    "dtype of no text": (set_entry(dtype=[1]), "has dtype"),
    "absurd shape": (set_entry(shape=[1 << 40, 1 << 40]), "absurd shape"),
    "absurd shape beside 0": (set_entry(shape=[0, 1 << 61, 4]), "absurd shape"),
    "more than 64 bits": (set_entry(shape=[1 << 70]), "no proper shape"),
    "negative shape": (set_entry(shape=[-2, -3]), "no proper shape"),
    "float shape": (set_entry(shape=[2.0, 3]), "no proper shape"),
    "bool shape": (set_entry(shape=[True, 6]), "no proper shape"),
    "no shape": (set_entry(shape=None), "no proper shape"),
    "many dimensions": (set_entry(shape=[6] + [1] * 99), "no proper shape"),
    "as large as it says, and larger than the file": (
        set_entry(shape=[1 << 40], data_offsets=[0, 1 << 42]),
        "overlaps",
    ),
    "outside of the file": (place(1 << 40, (1 << 40) + 24), "follows a gap"),
    "negative place": (place(-24, 0), "no proper data_offsets"),
    "backward place": (place(24, 0), "its place has -24"),
    "three ends": (set_entry(data_offsets=[0, 24, 24]), "no proper data_offsets"),
    "overlap": (
        change(lambda h, d: h["b"].update(data_offsets=[22, 24])),
        "tensor 'b' overlaps",
    ),
    "gap": (
        change(lambda h, d: h["b"].update(data_offsets=[25, 27]) or d + b"x"),
        "tensor 'b' follows a gap",
    ),
    "trailing bytes": (change(lambda h, d: d + b"x"), "longer than it says"),
    "missing bytes": (change(lambda h, d: d[:-1]), "cut short"),
    "a field too many": (set_entry(extra=1), "no more"),
    "no entry": (change(lambda h, d: h.update(a=3)), "needs a dtype"),
    "bools of other bytes": (
        change(lambda h, d: d[:-1] + b"\2"),
        "'b' does not match its checksum",
    ),
    "a tensor without checksum": (
        change(lambda h, d: h.update(c=dict(dtype="U8", shape=[0], data_offsets=[0, 0]))),
        "not those that there are checksums of",
    ),
    "a tensor is missing": (
        change(lambda h, d: h.pop("b") and d[:24]),
        "not those that there are checksums of",
    ),
    "checksums of no text": (set_metadata(checksums='{"a": 1, "b": 2}'), "checksums"),
    "a name that climbs out": (rename("../../etc/passwd"), "the name of a tensor"),
    "a name with a folder": (rename("a/b"), "the name of a tensor"),
    "a name of nothing": (rename(""), "the name of a tensor"),
    "a name that cannot be printed": (rename("a\x1b[2J"), "the name of a tensor"),
    "a name without end": (rename("a" * 1000), "the name of a tensor"),
    "kind": (set_metadata(kind="../../x"), "kind must"),
    "newer": (set_metadata(format_version="2"), "version 2.*pip install --upgrade"),
    "much newer": (set_metadata(format_version="9" * 50), "the format's version"),
    "no version": (set_metadata(format_version="one"), "the format's version"),
    "attributes of NaN": (set_metadata(attributes='{"x": NaN}'), "NaN is not a number"),
    "attributes of inf": (set_metadata(attributes='{"x": -Infinity}'), "-Infinity is not"),
    "attributes out of range": (set_metadata(attributes='{"x": 1e999}'), "1e999 is not"),
    "attributes with many digits": (set_metadata(attributes=f'{{"x": {"9" * 9999}}}'), "digits"),
    "attributes twice": (set_metadata(attributes='{"x": 1, "x": 2}'), "comes twice"),
    "attributes of a list": (set_metadata(attributes="[1]"), "no JSON object"),
    "attributes cut": (set_metadata(attributes='{"x": '), "attributes"),
    "attributes nested deeply": (
        set_metadata(attributes='{"x":' + "[" * 200_000 + "]" * 200_000 + "}"),
        "recursion",
    ),
    "attributes that are missing": (
        change(lambda h, d: h["__metadata__"].pop("attributes") and None),
        "has no 'attributes'",
    ),
    "header nested deeply": (text(lambda t: b'{"a":' * 200_000), "recursion"),
    "header of no object": (text(lambda t: b"[1]"), "no JSON object"),
    "header of no UTF-8": (text(lambda t: t.replace(b"Kind", b"\xff\xfe")), "its header"),
    "a tensor twice": (text(lambda t: b'{"a": 1, ' + t[1:]), "comes twice"),
    "metadata twice": (text(lambda t: b'{"__metadata__": {}, ' + t[1:]), "comes twice"),
    "two headers": (text(lambda t: t + t), "Extra data"),
}


class TestHostileFiles:
    @pytest.mark.parametrize("case", HOSTILE)
    def test_are_refused(self, small, case):
        spoil, said = HOSTILE[case]
        spoil(small)
        with pytest.raises(FileFormatError, match=said) as caught:
            read(small)
        assert str(caught.value).startswith(f"{small}: ") and len(str(caught.value)) < 500

    def test_bools_of_other_bytes_under_a_right_checksum(self, small):
        header, data = split(small)
        data = data[:-1] + b"\2"
        stored = np.frombuffer(data[24:], "?")
        checksums = json.loads(header["__metadata__"]["checksums"])
        checksums["b"] = container._digest(stored).hexdigest()
        header["__metadata__"]["checksums"] = json.dumps(checksums)
        join(small, header, data)
        with pytest.raises(FileFormatError, match="other bytes than 0 and 1"):
            read(small)

    @pytest.mark.parametrize("length", [1, 2**24 + 1, 2**32, 2**63, 2**64 - 1])
    def test_absurd_lengths_of_the_header(self, path, length):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(FileFormatError):
            read(path)

    def test_nothing_large_is_allocated(self, small):
        whole = small.read_bytes()
        for case, (spoil, _) in HOSTILE.items():
            small.write_bytes(whole)
            spoil(small)
            size = os.path.getsize(small)
            tracemalloc.start()
            with pytest.raises(FileFormatError):
                read(small)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 50 * size + 100_000, case

    def test_a_file_that_others_wrote(self, path):
        save_file({"w": np.ones(3), "v": np.ones(2)}, path, {"format": "pt"})
        with pytest.raises(FileFormatError, match="of 2 tensors that fastvq did not write.*pt"):
            read(path)
        save_file({"w": np.ones(3)}, path)
        with pytest.raises(FileFormatError, match="of 1 tensors that fastvq did not write"):
            inspect(path)

    @pytest.mark.parametrize(
        ("start", "said"),
        [
            (b"\x93NUMPY\x01\x00v", "a NumPy .npy array"),
            (b"PK\x03\x04abcdefgh", "a zip archive"),
            (b"\x80\x04\x95abcdefgh", "pickle"),
            (b"\x89HDF\r\n\x1a\nabc", "HDF5"),
            (b"GGUF\x03\0\0\0abc", "GGUF"),
            (b"", "0 bytes"),
            (b"short", "5 bytes"),
            (b"some text of no kind at all", "27 bytes"),
        ],
    )
    def test_other_kinds_of_files(self, path, start, said):
        path.write_bytes(start)
        with pytest.raises(FileFormatError, match=f"not a fastvq file.*{re.escape(said)}"):
            read(path)

    def test_what_is_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "absent")
        with pytest.raises(IsADirectoryError):
            read(tmp_path)
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
        with pytest.raises(FileFormatError, match="not a plain file"):
            read(tmp_path / "pipe")
        with pytest.raises(TypeError):
            read(3)

    def test_a_file_that_shrinks_while_it_is_read(self, path, monkeypatch):
        write(path, "Kind", {"a": np.arange(1 << 16)}, {})
        header, whole = container._read_header, os.path.getsize(path)

        def shrinking(file):
            summary = header(file)
            os.truncate(path, summary.nbytes - 5)
            return summary

        monkeypatch.setattr(container, "_read_header", shrinking)
        for look in (read, find_damage):
            os.truncate(path, whole)
            with pytest.raises(FileFormatError, match="cut short while"):
                look(path)
