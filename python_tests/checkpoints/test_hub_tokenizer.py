"""Tokenizers of Hugging Face folders, by `tokenizers` alone where that suffices."""

import json
import sys

import pytest
from tiny_llama import tiny_tokenizer
from transformers import EsmTokenizer, PreTrainedTokenizerFast

from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.sampling.canvas import known_tokens

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }} "
    "{% endfor %}{% if add_generation_prompt %}ab{% endif %}"
)
CHAT = [{"role": "system", "content": "b"}, {"role": "user", "content": "a b"}]


def save(folder, **special):
    backend = tiny_tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def test_a_tokenizer_json_needs_no_transformers(tmp_path, monkeypatch):
    save(tmp_path, mask_token="<|mask|>", bos_token="<unused>")
    monkeypatch.setitem(sys.modules, "transformers", None)
    tokenizer = find_tokenizer(tmp_path)
    assert tokenizer.special == {"mask_token": 5, "bos_token": 1} and tokenizer.bos_id == 1
    assert tokenizer.special_ids == [1, 5] and tokenizer.vocab_size == 6
    assert tokenizer.encode("a b") == [2, 3] and tokenizer.token_id("ab") == 4
    assert tokenizer.decode([2, 3]).replace(" ", "") == "ab"
    assert tokenizer.decode([7]) == "\u2588"


def test_special_tokens_may_be_objects(tmp_path):
    save(tmp_path)
    config = {"mask_token": {"content": "ab", "lstrip": True}, "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "b"}))
    tokenizer = find_tokenizer(tmp_path)
    assert tokenizer.special == {"mask_token": 4, "eos_token": 3}
    assert tokenizer.bos_id == 0  # <|endoftext|>, which starts texts where nothing else is named


def test_a_vocabulary_with_holes_reaches_as_far_as_its_ids(tmp_path):
    save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["z"] = 9
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = find_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 10 and tokenizer.decode([9]) == "z"


def test_a_tokenizer_that_is_plain_python(tmp_path):
    names = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", "A", "C", "D"]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    EsmTokenizer(tmp_path / "vocab.txt").save_pretrained(tmp_path)
    tokenizer = find_tokenizer(tmp_path)
    assert tokenizer.special["mask_token"] == 4 and tokenizer.special_ids == [0, 1, 2, 3, 4]
    assert tokenizer.encode("ACD") == [5, 6, 7] and tokenizer.vocab_size == 8
    assert tokenizer.decode([5, 6]).replace(" ", "") == "AC"


def test_the_tokenizer_of_dream_without_its_remote_code(tmp_path):
    vocabulary = {"a": 0, "b": 1, "\u0120": 2, "ab": 3}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    names = ["<|endoftext|>", "<|beginoftext|>", "<|mask|>"]
    added = {str(4 + i): {"content": n, "special": True} | special for i, n in enumerate(names)}
    config = {
        "added_tokens_decoder": added,
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>",
        "mask_token": "<|mask|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "DreamTokenizer",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = find_tokenizer(tmp_path)
    assert tokenizer.special["mask_token"] == 6 and tokenizer.bos_id == 5
    assert tokenizer.encode("ab a") == [3, 2, 0] and tokenizer.vocab_size == 7
    assert tokenizer.decode([3, 2, 0]) == "ab a"


def test_folders_without_one(tmp_path):
    assert find_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json is not a tokenizer file"):
        find_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(ValueError, match="has a tokenizer that cannot be read"):
        find_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ValueError, match=r"tokenizer.json must be a file, it is a folder"):
        find_tokenizer(tmp_path)


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("a")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'edlm_engine\[hub\]'"):
        find_tokenizer(tmp_path)


def compose(folder, prompt=None, batch_size=2, suffix=None):
    tokenizer = None if folder is None else find_tokenizer(folder)
    ids = {"mask_id": 5, "vocab_size": 6, "tokenizer": tokenizer}
    return known_tokens(prompt, suffix, batch_size, **ids).canvas(batch_size, 7, 5).tolist()


@pytest.mark.parametrize("where", ["file", "config", "by name"])
def test_chats_are_rendered_by_the_template_of_the_folder(tmp_path, where):
    save(tmp_path, bos_token="<|endoftext|>")
    path = tmp_path / "tokenizer_config.json"
    if where == "file":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    else:
        named = [{"name": "other", "template": "b"}, {"name": "default", "template": TEMPLATE}]
        template = TEMPLATE if where == "config" else named
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    wanted = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert wanted == [0, 3, 2, 3, 4]
    assert compose(tmp_path, CHAT) == [[*wanted, 5, 5]] * 2  # one chat serves all sequences
    rows = [[0, 3, 4, 5, 5, 5, 5], [0, 3, 2, 3, 4, 5, 5]]
    assert compose(tmp_path, [CHAT[:1], CHAT]) == rows
    assert compose(tmp_path, [CHAT[:1], "a"]) == [rows[0], [2, 5, 5, 5, 5, 5, 5]]
    # A tokenizer of transformers has the same method.
    canvas = known_tokens(CHAT, None, 1, mask_id=5, vocab_size=6, tokenizer=theirs).canvas(1, 7, 5)
    assert canvas.tolist() == [[*wanted, 5, 5]]


def test_chats_that_cannot_be_rendered(tmp_path, monkeypatch):
    save(tmp_path)
    for folder in (None, tmp_path):
        with pytest.raises(ValueError, match=r"prompt holds messages, .* no tokenizer with a chat"):
            compose(folder, CHAT)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    for wrong in ({"role": "user"}, {"role": 1, "content": "a"}, "a", 3, [CHAT[0]]):
        with pytest.raises(TypeError, match=r"prompt must hold messages .*, message 1 is"):
            compose(tmp_path, [CHAT[0], wrong])
    with pytest.raises(ValueError, match="messages that the chat template takes: no tools"):
        compose(tmp_path, [{"role": "tool", "content": "a"}])
    with pytest.raises(ValueError, match="prompt must hold 2 rows, one per sequence, got 1"):
        compose(tmp_path, [CHAT])
    with pytest.raises(TypeError, match="suffix must be text or integer tokens"):
        compose(tmp_path, suffix=CHAT)
    unsafe = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (tmp_path / "chat_template.jinja").write_text(unsafe)
    with pytest.raises(ValueError, match="unsafe"):
        compose(tmp_path, CHAT)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 3}')
    with pytest.raises(ValueError, match="must hold a chat_template of text, got 3"):
        compose(tmp_path, CHAT)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'edlm_engine\[hub\]'"):
        compose(tmp_path, CHAT)
