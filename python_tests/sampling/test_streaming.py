"""Streamers: the text comes in its order, as soon as it stands, and is that of the generation."""

from threading import Thread

import pytest
import torch
from enumeration import TinyDenoiser
from tiny_models import TableAR, table_denoiser
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.generation.streamers import TextIteratorStreamer, TextStreamer

from edlm_engine import ARResidualEnergy, CallableDenoiser, Engine

pytestmark = pytest.mark.usefixtures("single_thread")
VOCAB, LENGTH, MASK, EOS = 5, 6, 1, 3
TINY = TinyDenoiser(vocab=VOCAB, length=LENGTH, mask_id=MASK)


@pytest.fixture(scope="module")
def engine():
    return Engine(table_denoiser(TINY), ARResidualEnergy(TableAR(VOCAB, LENGTH)))


@pytest.fixture(scope="module")
def words():
    """A tokenizer of transformers, whose token v is a word of v + 1 letters."""
    vocab = {"abcde"[v] * (v + 1): v for v in range(VOCAB)}
    own = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=own)


class Noted:
    """What a streamer is given."""

    def __init__(self):
        self.log = []

    def put(self, tokens):
        assert tokens.dtype == torch.int64 and tokens.device.type == "cpu"
        self.log.append(("put", tokens.tolist()))

    def end(self):
        self.log.append(("end", None))

    def named(self, name):
        return [value for what, value in self.log if what == name]


class NotedCanvas(Noted):
    def put_provisional(self, tokens):
        self.log.append(("canvas", tokens.tolist()))

    def put_draft(self, value):
        self.log.append(("draft", value.tolist()))


CASES = [
    {"steps": 4},
    {"steps": None},
    {"order": "leftmost", "steps": 3},
    {"order": "confidence", "steps": 4, "block_length": 2},
    {"steps": 4, "eos_id": EOS},
    {"steps": 6, "remask": 0.5},
    {"steps": 4, "correction": "smc", "num_candidates": 3},
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "known", [{}, {"prompt": [2, 4]}, {"prompt": [EOS], "suffix": [0]}, {"prompt": [2] * LENGTH}]
)
def test_a_text_comes_in_its_order(engine, case, known):
    prompt = known.get("prompt", [])
    for seed in range(8):
        streamer, states = NotedCanvas(), []
        out = engine.generate(
            config=case,
            seed=[seed],
            streamer=streamer,
            callback=lambda _, __, xt, states=states: states.append(xt[0].tolist()),
            **known,
        )
        first, *rest = streamer.named("put")
        assert first == [prompt] and all(rest)
        text = prompt + [token for tokens in rest for token in tokens]
        sequence = out.sequences[0].tolist()
        suffix = len(known.get("suffix", []))
        ends = [p for p in range(len(prompt), LENGTH - suffix) if sequence[p] == case.get("eos_id")]
        assert text == sequence[: ends[0] if ends else None]
        assert streamer.log[-1] == ("end", None) and len(streamer.named("end")) == 1
        assert streamer.named("canvas") == states
        if not case.keys() & {"remask", "correction"}:
            as_soon_as_it_stands(streamer.log, states, len(text))
        elif states:
            assert len(rest) == 1  # what may still change comes at the end


def as_soon_as_it_stands(log, states, size):
    """After each step all that has no mask before it was put; the rest of the canvas is a draft."""
    put, step = 0, 0
    drafts = []
    for what, value in log:
        if what == "put":
            put += len(value[0]) if isinstance(value[0], list) else len(value)
        elif what == "draft":
            drafts.append(value[0])
        elif what == "canvas":
            stands = [*value, MASK].index(MASK)
            assert put == min(stands, size)
            assert drafts == ([value[put:]] if put < LENGTH else [])
            drafts, step = [], step + 1
    assert step == len(states)


def test_steps_put_what_they_reveal(engine):
    streamer = Noted()
    engine.generate(config={"steps": None, "order": "leftmost"}, streamer=streamer)
    assert [len(tokens) for tokens in streamer.named("put")[1:]] == [1] * LENGTH


@pytest.mark.parametrize("skip_prompt", [False, True])
def test_text_streamers_of_transformers(engine, words, capsys, skip_prompt):
    for prompt in ([2, 4], []):
        streamer = TextStreamer(words, skip_prompt=skip_prompt)
        out = engine.generate(config={"steps": 3}, prompt=prompt, streamer=streamer)
        wanted = words.decode(out.sequences[0][len(prompt) if skip_prompt else 0 :])
        assert capsys.readouterr().out == wanted + "\n"


def test_an_iterator_in_another_thread(engine, words):
    streamer = TextIteratorStreamer(words, timeout=20)
    outs = []
    options = {"config": {"steps": None, "order": "leftmost"}, "streamer": streamer}
    thread = Thread(target=lambda: outs.append(engine.generate(**options)))
    thread.start()
    parts = list(streamer)
    thread.join(20)
    assert "".join(parts) == words.decode(outs[0].sequences[0])
    assert len([part for part in parts if part]) == LENGTH


def test_drafts_of_transformers(engine, words, capsys):
    streamers = pytest.importorskip("transformers.generation.streamers")
    if not hasattr(streamers, "TextDiffusionStreamer"):
        pytest.skip("this transformers has none")
    streamer = streamers.TextDiffusionStreamer(words)
    out = engine.generate(config={"steps": None}, streamer=streamer)
    printed = capsys.readouterr().out
    drafts = printed.count("\033[33m")
    assert 0 < drafts <= LENGTH and "bb" in printed  # the mask's word, where hidden
    assert printed.rsplit("\033[J", 1)[1].strip() in words.decode(out.sequences[0])


def test_an_error_ends_the_stream(words):
    def logits(xt, sigma):
        if (xt == MASK).sum() < 3:
            raise ArithmeticError("a model that cannot")
        return torch.zeros(*xt.shape, VOCAB)

    engine = Engine(CallableDenoiser(logits, mask_id=MASK, vocab_size=VOCAB, length=LENGTH))
    streamer = TextIteratorStreamer(words, timeout=20)
    with pytest.raises(ArithmeticError):
        engine.generate(config={"steps": None, "order": "leftmost"}, streamer=streamer)
    assert len("".join(streamer).split()) == LENGTH - 2


def test_a_callback_that_stops_ends_the_stream(engine):
    for seed in range(20):
        streamer = Noted()
        out = engine.generate(
            config={"steps": None}, seed=seed, streamer=streamer, callback=lambda *_: False
        )
        stands = out.sequences[0].tolist().index(MASK)
        assert sum(len(tokens) for tokens in streamer.named("put")[1:]) == stands
        assert streamer.log[-1][0] == "end"


@pytest.mark.parametrize(
    ("batch_size", "streamer", "error", "message"),
    [
        (2, Noted(), ValueError, "batch_size must be 1 with a streamer, got 2"),
        (1, print, TypeError, "streamer must have put and end, got builtin_function_or_method"),
        (1, "x", TypeError, "streamer must have put and end, got str"),
    ],
)
def test_what_cannot_be_streamed(engine, batch_size, streamer, error, message):
    with pytest.raises(error, match=message):
        engine.generate(batch_size, streamer=streamer)


def test_a_known_eos_is_text(engine):
    canvas = torch.tensor([[MASK, MASK, EOS, MASK, MASK, 0]])
    lengths = set()
    for seed in range(20):
        streamer = Noted()
        out = engine.generate(
            config={"steps": 3, "eos_id": EOS}, seed=seed, canvas=canvas, streamer=streamer
        )
        text = [token for tokens in streamer.named("put")[1:] for token in tokens]
        free = [p for p in (0, 1, 3, 4) if out.sequences[0, p] == EOS]
        assert text == out.sequences[0].tolist()[: free[0] if free else None]
        lengths.add(len(text))
    assert LENGTH in lengths and min(lengths) < 2
