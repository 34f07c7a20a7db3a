"""SMDM's lit-gpt files: names and order of rows turned by hand, against transformers' Llama."""

import pytest
import torch
from all_visible import all_visible
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_llama

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.bundle import load_ar, load_bundle, load_for_sampling
from edlm_engine.checkpoints.describe import describe
from edlm_engine.checkpoints.formats import smdm

VOCAB, HEADS = 7, 4  # without the mask
SIZES = {(2, 16, 32): HEADS}


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch):
    monkeypatch.setattr(smdm, "HEADS", smdm.HEADS | SIZES)


def llama(vocab):
    options = {"num_key_value_heads": HEADS, "tie_word_embeddings": False, "rms_norm_eps": 1e-5}
    model = tiny_llama(vocab, **options)

    def rounded(module, args, angles):
        return tuple(part.bfloat16().float() for part in angles)

    model.model.rotary_emb.register_forward_hook(rounded)
    return model


def lit_gpt(model, rows):
    """The names of lit-gpt; attn.attn holds per head the rows of query, key and value."""
    w = model.state_dict()
    made = {"lm_head.weight": w["lm_head.weight"][:rows].clone()}
    made["transformer.wte.weight"] = w["model.embed_tokens.weight"]
    made["transformer.ln_f.weight"] = w["model.norm.weight"]
    for i in range(2):
        ours, theirs = f"transformer.h.{i}", f"model.layers.{i}"
        qkv = [w[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv"]
        size = 16 // HEADS
        rows_of = [part[h * size : (h + 1) * size] for h in range(HEADS) for part in qkv]
        made[f"{ours}.attn.attn.weight"] = torch.cat(rows_of)
        made[f"{ours}.attn.proj.weight"] = w[f"{theirs}.self_attn.o_proj.weight"]
        made[f"{ours}.norm_1.weight"] = w[f"{theirs}.input_layernorm.weight"]
        made[f"{ours}.norm_2.weight"] = w[f"{theirs}.post_attention_layernorm.weight"]
        for name, part in (("w1", "gate"), ("w2", "up"), ("w3", "down")):
            made[f"{ours}.mlp.swiglu.{name}.weight"] = w[f"{theirs}.mlp.{part}_proj.weight"]
    return made


def masked_file(folder):
    path = folder / "mdm-0M-1e18.safetensors"
    save_file(lit_gpt(llama(VOCAB + 1), VOCAB), path)
    return path


def causal_file(folder):
    path = folder / "ar-0M-1e18.safetensors"
    save_file(lit_gpt(llama(VOCAB), VOCAB), path)
    return path


@torch.no_grad()
def test_a_denoiser_is_llama_with_all_visible(tmp_path):
    denoiser = load_bundle(masked_file(tmp_path)).denoiser
    assert (denoiser.mask_id, denoiser.vocab_size, denoiser.length) == (VOCAB, VOCAB + 1, 2048)
    xt = torch.randint(VOCAB + 1, (3, 9))
    wanted = all_visible(llama(VOCAB + 1), xt)[..., :VOCAB]
    torch.testing.assert_close(denoiser.logits(xt)[..., :VOCAB], wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_left_to_right_model_scores_behind_the_end_of_the_text_before(tmp_path):
    scorer = load_ar(causal_file(tmp_path))
    assert (scorer.vocab_size, scorer.bos_id, scorer.first_position) == (VOCAB, 2, 0)
    x0 = torch.randint(VOCAB, (3, 9))
    seen = torch.cat((torch.full((3, 1), 2), x0[:, :-1]), 1)
    wanted = llama(VOCAB)(input_ids=seen).logits
    torch.testing.assert_close(scorer.logits(x0), wanted, rtol=0, atol=1e-4)


def test_the_pair_generates(tmp_path):
    engine = Engine.from_pretrained(masked_file(tmp_path), energy=causal_file(tmp_path))
    out = engine.generate(2, config=GenerationConfig(steps=4, num_candidates=3, length=6))
    assert (out.sequences < VOCAB).all() and (out.energy_evaluations > 0).all()


def test_dtypes(tmp_path):
    denoiser = load_for_sampling(masked_file(tmp_path), dtype=torch.bfloat16).denoiser
    assert {p.dtype for p in denoiser.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("transformer.h.1.norm_2.weight"),
            r"missing weights \['transformer.h.1.norm_2.weight'\]",
        ),
        (lambda w: w.update(extra=torch.ones(1)), r"unexpected weights \['extra'\]"),
        (
            lambda w: w.update({"transformer.h.0.attn.attn.weight": torch.ones(24, 16)}),
            r"transformer.h.0.attn.attn.weight \(k\) must be \[16, 16\], got \[8, 16\]",
        ),
        (
            lambda w: w.update({"transformer.h.0.attn.attn.weight": torch.ones(25, 16)}),
            r"missing weights \['transformer.h.0.attn.attn.weight \(k\)'",
        ),
        (
            lambda w: w.update({"lm_head.weight": torch.ones(3, 16)}),
            r"lm_head.weight must have 8 rows \(ar\) or 7 rows|8 rows \(ar\) or 7 \(mdm\), got 3",
        ),
        (lambda w: w.pop("lm_head.weight"), r"missing weights \['lm_head.weight'\]"),
        (
            lambda w: w.update({"transformer.h.0.mlp.swiglu.w1.weight": torch.ones(9, 16)}),
            r"must be of a published SMDM model, got \(2, 16, 9\)",
        ),
    ],
)
def test_wrong_weights_are_named(tmp_path, change, message):
    path = masked_file(tmp_path)
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(ValueError, match=rf"mdm-0M-1e18.safetensors.*{message}"):
        load_bundle(path)


def test_a_truncated_file_is_named(tmp_path):
    path = masked_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"mdm-0M-1e18.safetensors is damaged"):
        load_bundle(path)


def test_described_as_loaded(tmp_path):
    place = masked_file(tmp_path)
    facts, model = describe(place), load_bundle(place).denoiser
    assert facts["missing"] == "nothing" and facts["mask"] == model.mask_id
    assert (facts["length"], facts["vocabulary"]) == (model.length, model.vocab_size)
