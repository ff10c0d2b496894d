"""BERT's tokenizer: text becomes the numbers of words and of pieces of words.

Text is cleaned and split as in Devlin et al., "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding" (2019): without control characters and, as the vocabulary
wants it, in lower case and without accents; at white space, and around every punctuation mark and
Chinese character. Each word is then cut into the longest pieces that the vocabulary has, from the
front (Wu et al., "Google's Neural Machine Translation System", 2016, section 4.1); pieces that do
not begin a word are written with "##" before them.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = ["WordPiece"]

_LONGEST_WORD = 100  # characters; a longer one is unknown
_KEPT_WORDS = 1 << 14  # words whose pieces are remembered
# First and last of the blocks of Chinese characters; Japanese syllables and Korean are none.
_CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


class WordPiece:
    """A tokenizer with its vocabulary.

    Parameters
    ----------
    vocabulary : sequence of str
        The tokens, in the order of their numbers.
    lower, strip_accents, split_chinese : bool
    max_length : int
        The most tokens of a text, the first and last ones included; what is beyond is cut off.
    unknown, first, last, padding : str
        Tokens for what has no pieces, before and after each text, and to fill up short rows.
    special : sequence of str
        Tokens that stand for themselves where they occur in a text.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        lower: bool = True,
        strip_accents: bool = True,
        split_chinese: bool = True,
        max_length: int = 512,
        unknown: str = "[UNK]",
        first: str = "[CLS]",
        last: str = "[SEP]",
        padding: str = "[PAD]",
        special: Sequence[str] = (),
    ):
        self._number = {token: i for i, token in enumerate(vocabulary)}
        named = [unknown, first, last, padding, *special]
        if not all(isinstance(token, str) for token in (*vocabulary, *named)):
            raise ValueError("the tokens of a vocabulary are text")
        if missing := [token for token in named if token not in self._number]:
            raise ValueError(f"the vocabulary has no {', '.join(map(repr, missing))}")
        if type(max_length) is not int or max_length < 2:
            raise ValueError(f"max_length must be a whole number from 2 on, got {max_length!r}")
        self.max_length, self.lower, self.strip_accents = max_length, lower, strip_accents
        self.split_chinese = split_chinese
        self._unknown, self._first, self._last, self._padding = map(self._number.get, named[:4])
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._longest = min(_LONGEST_WORD, max(map(len, vocabulary)))
        self._pieces = lru_cache(maxsize=_KEPT_WORDS)(self._cut)

    def __call__(self, text: str) -> list[int]:
        """The numbers of a text's tokens, with the first and last ones."""
        numbers = []
        end = 0
        for match in self._special.finditer(text):
            numbers += self._ordinary(text[end : match.start()])
            numbers.append(self._number[match[0]])
            end = match.end()
        numbers += self._ordinary(text[end:])
        return [self._first, *numbers[: self.max_length - 2], self._last]

    def batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of texts, filled up to the longest, and 1 where there is a token, else 0.

        Returns
        -------
        ids, mask : ndarrays of shape (len(texts), most tokens), int64
        """
        rows = [self(text) for text in texts]
        ids = np.full((len(rows), max(map(len, rows), default=0)), self._padding, np.int64)
        mask = np.zeros_like(ids)
        for row, numbers in enumerate(rows):
            ids[row, : len(numbers)] = numbers
            mask[row, : len(numbers)] = 1
        return ids, mask

    def _ordinary(self, text):
        """The numbers of a text without special tokens."""
        return [number for word in self._words(text) for number in self._pieces(word)]

    def _words(self, text):
        """Words and punctuation marks, cleaned."""
        text = "".join(map(_cleaned, text))
        if self.split_chinese:
            text = "".join(f" {c} " if _is_chinese(c) else c for c in text)
        if self.strip_accents:
            decomposed = unicodedata.normalize("NFD", text)
            text = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        if self.lower:
            text = text.lower()
        return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()

    def _cut(self, word):
        """The numbers of the longest pieces, from the front; of the unknown token if some lack."""
        if len(word) > _LONGEST_WORD:
            return (self._unknown,)
        numbers, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                number = self._number.get(("##" if start else "") + word[start:end])
                if number is not None:
                    break
            else:
                return (self._unknown,)
            numbers.append(number)
            start = end
        return tuple(numbers)


@lru_cache(maxsize=1 << 12)
def _cleaned(c):
    """A character; nothing for one that cannot be seen, and a blank for any white space."""
    if c in "\t\n\r" or (c.isspace() and unicodedata.category(c)[0] == "Z"):
        return " "
    hidden = c in "\0\ufffd" or unicodedata.category(c)[0] == "C"
    return "" if hidden else c


@lru_cache(maxsize=1 << 12)
def _is_punctuation(c):
    return c in string.punctuation or unicodedata.category(c)[0] == "P"


def _is_chinese(c):
    return c >= "\u3400" and any(first <= ord(c) <= last for first, last in _CHINESE)
