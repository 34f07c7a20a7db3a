"""The tokenizer: lossless both ways, marks for ids outside, files complete or errors."""

import json

import pytest

from edlm_engine.checkpoints.tokenizer import END_OF_TEXT, UNKNOWN_MARK, Tokenizer

TEXTS = ["the cat sat on the mat, the cat sat on the hat.\n" * 20, "a dog and the log\n" * 10]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


@pytest.mark.parametrize(
    "text",
    ["the cat sat", "", "  two  spaces\n\nlines\t", "naïve — “quoted” 猫 \U0001f408", "\x00"],
)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocabulary(tokenizer):
    assert tokenizer.bos_id == 0 and 257 < tokenizer.vocab_size <= 300
    assert tokenizer.encode(END_OF_TEXT) == [0] and tokenizer.decode([0]) == END_OF_TEXT
    assert len(tokenizer.encode("the cat sat on the")) < len("the cat sat on the") / 2


def test_ids_outside_show_as_marks(tokenizer):
    ids = tokenizer.encode("the cat")
    mask = tokenizer.vocab_size
    assert tokenizer.decode([mask, mask, *ids, mask]) == f"{UNKNOWN_MARK * 2}the cat{UNKNOWN_MARK}"
    assert tokenizer.decode([-1]) == UNKNOWN_MARK


def test_a_character_over_several_tokens_is_decoded_whole(tokenizer):
    ids = tokenizer.encode("猫")
    assert len(ids) == 3 and tokenizer.decode(ids) == "猫"


def test_file_round_trip(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.from_file(path)
        assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
        assert again.vocab_size == tokenizer.vocab_size


def test_training_is_deterministic(tokenizer):
    again = Tokenizer.train(TEXTS, 300)
    assert again.encode(TEXTS[0] + TEXTS[1]) == tokenizer.encode(TEXTS[0] + TEXTS[1])


def test_gpt2_files(tokenizer, tmp_path):
    model = json.loads(tokenizer._bpe.to_str())["model"]
    vocab = {token: i for token, i in model["vocab"].items() if token != END_OF_TEXT}
    order = sorted(vocab, key=vocab.get)
    vocab = {token: i for i, token in enumerate([*order, END_OF_TEXT])}
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    gpt2 = Tokenizer.from_file(tmp_path)
    assert gpt2.bos_id == len(vocab) - 1 == gpt2.vocab_size - 1
    text = "the cat sat on the mat"
    assert gpt2.encode(text) == [i - 1 for i in tokenizer.encode(text)]
    assert gpt2.decode(gpt2.encode(text)) == text


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*missing"):
        Tokenizer.from_file(tmp_path / "missing")
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"tokenizer.json is not a tokenizer file"):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer file .*vocab.json"):
        Tokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    with pytest.raises(ValueError, match="vocab_size must be >= 257"):
        Tokenizer.train(TEXTS, 256)


def test_characters(tmp_path):
    tokenizer = Tokenizer.of_characters(["bad cab", "a\nb"])
    assert tokenizer.vocab_size == tokenizer.bos_id == 6 and tokenizer.end_id is None
    assert tokenizer.encode("a cab\n") == [2, 1, 4, 2, 3, 0]
    assert tokenizer.decode([2, 1, 6, 4]) == f"a {UNKNOWN_MARK}c"
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path)
    text = "abcd" * 50_000  # longer than what is encoded at once
    assert again.bos_id == 6 and again.decode(again.encode(text)) == text
    with pytest.raises(ValueError, match=r"it has \['X', 'é'\]"):
        again.encode("Xébad")
    with pytest.raises(ValueError, match="must hold a character"):
        Tokenizer.of_characters([""])
