"""Any causal language model as an energy: by folder, hub id or GGUF file, of the same tokens."""

import sys

import pytest
import torch
from mdlm_layouts import BARE_CONFIG, HUB_CONFIG, MASK, VOCAB, save, tensors
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_gguf, save_tiny_llama, tiny_llama
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.bundle import load_ar, load_scorer
from edlm_engine.checkpoints.registry import Request

CONFIG = GenerationConfig(steps=4, num_candidates=3)
SMALL = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
SMALL |= {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 32}


def gpt2(vocab):
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, bos_token_id=0, **sizes))


def qwen2(vocab):
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab, bos_token_id=0, **SMALL))


def qwen3(vocab):
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab, bos_token_id=0, head_dim=8, **SMALL))


@pytest.fixture
def denoiser(tmp_path):
    return save(tmp_path / "mdlm", HUB_CONFIG, tensors(prefix="backbone."))


@pytest.mark.parametrize("make", [gpt2, tiny_llama, qwen2, qwen3])
@pytest.mark.parametrize("vocab", [VOCAB, VOCAB - 1])
def test_models_with_and_without_a_row_for_the_mask(tmp_path, denoiser, make, vocab):
    model = make(vocab).eval()
    model.save_pretrained(tmp_path / "lm")
    engine = Engine.from_pretrained(denoiser, energy=tmp_path / "lm", dtype=torch.float32)
    scorer, x0 = engine.energy.model, torch.randint(MASK, (3, 12))
    assert scorer.forbidden_id == (MASK if vocab == VOCAB else -1)
    seen = torch.cat((torch.zeros(3, 1, dtype=torch.int64), x0[:, :-1]), 1)
    with torch.no_grad():
        wanted = model(input_ids=seen).logits
        torch.testing.assert_close(scorer.logits(x0), wanted, rtol=0, atol=1e-4)
    out = engine.generate(2, config=CONFIG)
    assert (out.sequences < MASK).all() and (out.energy_evaluations > 0).all()


@torch.no_grad()
def test_the_names_of_gpt2_itself(tmp_path):
    """The file on the hub has no prefix, and buffers of an old version."""
    model = gpt2(VOCAB).eval()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    weights |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    x0 = torch.randint(VOCAB, (2, 9))
    wanted = model(input_ids=torch.cat((torch.zeros_like(x0[:, :1]), x0[:, :-1]), 1)).logits
    torch.testing.assert_close(load_ar(tmp_path).logits(x0), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocab", [VOCAB - 2, VOCAB + 1])
def test_another_size_of_vocabulary_is_refused(tmp_path, denoiser, vocab):
    tiny_llama(vocab).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match=f"vocabulary of 14 or 13 tokens, got one of {vocab}"):
        Engine.from_pretrained(denoiser, energy=tmp_path / "lm")


def test_other_tokens_are_refused(tmp_path, denoiser):
    words = [f"w{i}" for i in range(VOCAB - 1)]
    for folder, order in ((denoiser, words), (tmp_path / "lm", words[::-1])):
        folder.mkdir(exist_ok=True)
        vocabulary = {word: i for i, word in enumerate(order)}
        Backend(models.WordLevel(vocabulary, unk_token="w0")).save(str(folder / "tokenizer.json"))
    tiny_llama(VOCAB).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match=r"must be of one tokenizer, 12 tokens differ"):
        Engine.from_pretrained(denoiser, energy=tmp_path / "lm")


def test_a_gguf_file(tmp_path):
    config = BARE_CONFIG | {"hidden_size": 16}
    weights = tensors()
    for name in ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias"):
        weights[name] = weights[name][:6].clone()
    place = save(tmp_path / "mdlm", config, weights)
    save_tiny_gguf(tmp_path / "tiny.gguf")
    engine = Engine.from_pretrained(place, energy=tmp_path / "tiny.gguf")
    assert engine.energy.model.vocab_size == 5
    assert (engine.generate(2, config=CONFIG).sequences < 5).all()


def test_an_id_in_the_cache(tmp_path, denoiser, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path / "cache" / "models--gpt2"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    gpt2(VOCAB - 1).save_pretrained(root / "snapshots" / ("0" * 40))
    engine = Engine.from_pretrained(denoiser, energy="gpt2", cache_dir=tmp_path / "cache")
    assert type(engine.energy.model.model).__name__ == "GPT2LMHeadModel"


def test_what_is_no_left_to_right_model(tmp_path, denoiser):
    with pytest.raises(ValueError, match="must hold a left-to-right model, got a FoldedDiT"):
        Engine.from_pretrained(denoiser, energy=denoiser)
    save_tiny_llama(tmp_path / "lm")
    (tmp_path / "lm" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="is damaged or not a causal language model"):
        load_ar(tmp_path / "lm")


@pytest.mark.parametrize("tied", [True, False])
def test_a_device_map_gives_the_same_scores(tmp_path, denoiser, tied):
    pytest.importorskip("accelerate")
    tiny_llama(VOCAB, tie_word_embeddings=tied).save_pretrained(tmp_path / "lm")
    options = {"energy": tmp_path / "lm", "dtype": torch.float32}
    plain = Engine.from_pretrained(denoiser, **options)
    mapped = Engine.from_pretrained(denoiser, **options, device_map={"": "cpu"})
    out, wanted = (e.generate(2, config=CONFIG, prompt=[1, 2, 3, 4]) for e in (mapped, plain))
    assert torch.equal(out.sequences, wanted.sequences)
    assert torch.equal(out.log_z, wanted.log_z)


def test_a_device_map_may_offload_blocks_but_not_the_head(tmp_path, denoiser):
    pytest.importorskip("accelerate")
    tiny_llama(VOCAB, tie_word_embeddings=False).save_pretrained(tmp_path / "lm")
    options = {"energy": tmp_path / "lm", "dtype": torch.float32}
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    parts |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    x0 = torch.randint(MASK, (2, 3, 12))
    plain = Engine.from_pretrained(denoiser, **options).energy.model
    mapped = Engine.from_pretrained(denoiser, **options, device_map=parts).energy.model
    assert any(p.is_meta for p in mapped.model.model.layers[1].parameters())
    with torch.no_grad():
        assert torch.equal(mapped.logits(x0[:, 0]), plain.logits(x0[:, 0]))
        x0[..., :6] = x0[:, :1, :6]
        for got, wanted in zip(
            *(m.hidden_after_prefix(x0, 6) for m in (mapped, plain)), strict=True
        ):
            assert torch.equal(got, wanted)
    with pytest.raises(ValueError, match="device_map must keep the output layer on a device"):
        Engine.from_pretrained(denoiser, **options, device_map=parts | {"lm_head": "disk"})


def test_a_device_map_moves_the_whole_output_layer(tmp_path):
    pytest.importorskip("accelerate")
    PhiForCausalLM(PhiConfig(vocab_size=VOCAB, bos_token_id=0, **SMALL)).save_pretrained(tmp_path)
    request = Request(blocks=torch.bfloat16, head=torch.float32, device_map={"": "cpu"})
    scorer = load_scorer(tmp_path, request)
    assert [part.dtype for part in scorer.head] == [torch.float32] * 2  # Phi's has a bias
    assert scorer.model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert scorer.logits(torch.zeros(1, 4, dtype=torch.int64)).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("last", ["cpu", 0])
def test_a_device_map_over_two_devices(tmp_path, denoiser, last):
    pytest.importorskip("accelerate")
    tiny_llama(VOCAB, tie_word_embeddings=False).save_pretrained(tmp_path / "lm")
    options = {"energy": tmp_path / "lm", "dtype": torch.float32, "device": "cuda"}
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": last}
    parts |= {"model.norm": last, "model.rotary_emb": "cpu", "lm_head": last}
    x0 = torch.randint(MASK, (3, 12), device="cuda")
    plain = Engine.from_pretrained(denoiser, **options)
    mapped = Engine.from_pretrained(denoiser, **options, device_map=parts)
    scores, wanted = (engine.energy.model.logits(x0) for engine in (mapped, plain))
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-3)
    assert (mapped.generate(2, config=CONFIG).energy_evaluations > 0).all()


def test_a_device_map_is_refused_where_it_says_nothing(tmp_path, denoiser, monkeypatch):
    everywhere = {"device_map": {"": "cpu"}}
    with pytest.raises(ValueError, match=r"device_map is only for .* is native"):
        Engine.from_pretrained(**everywhere)
    with pytest.raises(ValueError, match=r"device_map is only for .* energy=None has none"):
        Engine.from_pretrained(denoiser, **everywhere)
    tiny_llama(VOCAB).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="or device_map 'nowhere' does not fit it"):
        Engine.from_pretrained(denoiser, energy=tmp_path / "lm", device_map="nowhere")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match="device_map needs accelerate: pip install accelerate"):
        Engine.from_pretrained(denoiser, energy=tmp_path / "lm", **everywhere)
