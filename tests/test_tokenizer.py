import json
import warnings

import numpy as np
import pytest

from dynamicrafter_jax import tokenizer
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.tokenizer import END, PADDING, START, tokenize


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((golden / "tokens.json").read_text())


def test_every_golden_text_gives_the_golden_ids(cases):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two of the texts are meant to be cut
        ids = tokenize(cases["texts"])
    assert ids.dtype == np.int32
    wrong = [
        text
        for text, ours, theirs in zip(cases["texts"], ids, cases["ids"], strict=True)
        if ours.tolist() != theirs
    ]
    assert wrong == []


def test_texts_are_encoded_independently(cases):
    texts = [text for text in cases["texts"] if len(text) < 50]
    assert np.array_equal(tokenize(texts), np.concatenate([tokenize([text]) for text in texts]))


def test_html_is_unescaped_after_composing():
    # `<` keeps ftfy from unescaping, so the accent stays apart: "e", then U+0301 as bytes.
    decomposed, composed = tokenize(["< e&#x301;", "< \u00e9"])
    assert not np.array_equal(decomposed, composed)


@pytest.mark.parametrize("context_length", [2, 3, 7, 8, 9, 200])
def test_context_length_is_the_row_length(cases, context_length):
    full = [token for token in cases["ids"][1] if token != PADDING]
    assert len(full) == 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (row,) = tokenize([cases["texts"][1]], context_length)
    cut = [*full[: context_length - 1], END] if context_length < len(full) else full
    assert row.tolist() == cut + [PADDING] * (context_length - len(cut))


def test_cut_text_warns_with_what_is_lost_and_what_remains():
    with pytest.warns(UserWarning, match=r"the last 4 were cut.*remains: 'a boy'"):
        tokenize(["A  boy walking on the street"], context_length=4)
    with pytest.warns(UserWarning, match=r"80 tokens.*the last 5 were cut"):
        tokenize(["a " * 80])


def test_text_that_just_fits_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = tokenize(["a " * 75])
    assert row[0] == START and row[-1] == END and PADDING not in row


def test_no_texts_give_no_rows():
    assert tokenize([]).shape == (0, 77)
    assert tokenize([], context_length=5).shape == (0, 5)


def test_one_string_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"\['a dog'\]"):
        tokenize("a dog")


@pytest.mark.parametrize("context_length", [1, 0, -3])
def test_row_without_room_is_refused(context_length):
    with pytest.raises(UserError, match=f"context_length is {context_length}"):
        tokenize(["a dog"], context_length)


def test_vocabulary_has_the_size_of_the_text_tower():
    encoder = tokenizer._byte_pair_encoder()
    assert encoder.get_vocab_size() == tokenizer.VOCABULARY_SIZE
    assert encoder.token_to_id("<start_of_text>") == START
    assert encoder.token_to_id("<end_of_text>") == END
