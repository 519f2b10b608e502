"""Text to token ids, as the OpenCLIP text tower expects them.

The vocabulary ships with the package (`assets/bpe_simple_vocab_16e6.txt.gz`), so nothing is
downloaded.
"""

import functools
import gzip
import html
import os
import warnings
import zlib
from collections.abc import Sequence
from importlib import resources
from typing import Any, cast

import ftfy
import numpy as np
from jaxtyping import Int32
from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder

VOCABULARY_SIZE = 49408
START = 49406
END = 49407
PADDING = 0

_BYTES = 256
_SPECIAL = ("<start_of_text>", "<end_of_text>")


def tokenize(texts: Sequence[str], context_length: int = 77) -> Int32[np.ndarray, "b l"]:
    """Returns the token ids of each text, in rows of equal length.

    A row is `START`, the byte-pair encoding of the cleaned, lower-cased text, `END`, and
    `PADDING`. A text with too many tokens is cut, and its row ends in `END`; a warning says how
    many tokens were lost and which text remains.

    Args:
        texts: The b texts; an empty sequence gives an array of shape (0, context_length).
        context_length: Tokens in a row, `START` and `END` included; at least 2.

    Returns:
        Token ids, int32 of shape (b, context_length).

    Raises:
        UserError: `texts` is one string rather than a sequence of them, or `context_length` has
            no room for `START` and `END`.
    """
    if isinstance(texts, str):
        raise UserError(f"tokenize takes a list of texts, not one text: write [{texts!r}]")
    if context_length < 2:
        raise UserError(
            f"context_length is {context_length}, but a row of tokens needs at least 2: "
            "its start and its end"
        )
    rows = np.full((len(texts), context_length), PADDING, np.int32)
    for row, text in zip(rows, texts, strict=True):
        cleaned = _clean(text)
        encoding = _byte_pair_encoder().encode(cleaned, add_special_tokens=False)
        kept = encoding.ids[: context_length - 2]
        if len(kept) < len(encoding.ids):
            _warn_of_cut(cleaned, encoding, len(kept))
        row[: len(kept) + 2] = [START, *kept, END]
    return rows


def _clean(text: str) -> str:
    """Repairs mojibake, unescapes HTML (even if escaped twice), folds spaces, and lower-cases."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _warn_of_cut(cleaned: str, encoding: Encoding, kept: int) -> None:
    remaining = cleaned[: encoding.offsets[kept - 1][1]] if kept else ""
    warnings.warn(
        f"a text of {len(encoding.ids)} tokens is too long: the last {len(encoding.ids) - kept} "
        f"were cut, and this remains: {remaining!r}",
        stacklevel=3,
    )


@functools.cache
def _byte_pair_encoder() -> Tokenizer:
    # Otherwise transformers warns everybody who has no PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer  # slow to import, and not every program has text

    merges = _read_merges()
    characters = sorted(ByteLevel.alphabet())
    words = [
        *characters,
        *(f"{character}</w>" for character in characters),
        *(first + second for first, second in merges),
        *_SPECIAL,
    ]
    start, end = _SPECIAL
    tokenizer = CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)},
        merges=cast(Any, merges),  # annotated as strings, but it takes pairs
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
    ).backend_tokenizer
    # The text is cleaned already; normalising its Unicode again would differ from the release.
    tokenizer.normalizer = None
    return tokenizer


def _read_merges() -> list[tuple[str, str]]:
    """Returns the vocabulary's merges, most frequent first; the file holds more than are used."""
    asset = resources.files("dynamicrafter_jax") / "assets" / "bpe_simple_vocab_16e6.txt.gz"
    data = asset.read_bytes()
    try:
        _, *lines = gzip.decompress(data).decode("utf-8").splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        refuse_placeholder(str(asset), data)
        raise UserError(f"{asset} is damaged: install the package again") from error
    used = lines[: VOCABULARY_SIZE - 2 * _BYTES - len(_SPECIAL)]
    return [(first, second) for first, second in (line.split() for line in used)]
