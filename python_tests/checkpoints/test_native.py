"""Saving and loading: nothing changes on the way, and nothing wrong is accepted."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from edlm_engine.checkpoints.bundle import load_ar, load_bundle, load_denoiser
from edlm_engine.checkpoints.native import load_model, save_model
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.models import ARConfig, AutoregressiveTransformer, CausalLMScorer, DiT, DiTConfig

SIZES = {"length": 8, "hidden_dim": 16, "n_blocks": 2, "n_heads": 2}


def dit(tied=True, **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "mask_id": 10, "cond_dim": 4, **SIZES, **changes}
    return DiT(DiTConfig(**sizes, tie_word_embeddings=tied)).eval()


def ar(tied=True, bos_id=0):
    torch.manual_seed(1)
    config = ARConfig(vocab_size=10, **SIZES, tie_word_embeddings=tied, bos_id=bos_id)
    return AutoregressiveTransformer(config).eval()


def tokens(rows=3, length=8):
    return torch.randint(10, (rows, length), generator=torch.Generator().manual_seed(2))


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(tmp_path, tied):
    for name, model, args in (
        ("dit", dit(tied), (tokens(), torch.zeros(3))),
        ("ar", ar(tied), (tokens(),)),
    ):
        save_model(model, tmp_path / name)
        files = sorted(file.name for file in (tmp_path / name).iterdir())
        assert files == ["config.json", "model.safetensors"]
        again = load_model(tmp_path / name)
        assert type(again) is type(model) and again.config == model.config and not again.training
        assert torch.equal(again.logits(*args), model.logits(*args))


def test_tied_head_is_stored_once_and_tied_again(tmp_path):
    save_model(dit(tied=True), tmp_path)
    assert "output_layer.linear.weight" not in load_file(tmp_path / "model.safetensors")
    again = load_model(tmp_path)
    assert again.head[0] is again.vocab_embed.embedding


def test_dtypes(tmp_path):
    model = dit()
    save_model(model, tmp_path, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.pop("rotary_emb.inv_freq").dtype == torch.float32
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert load_model(tmp_path).head[0].dtype == torch.bfloat16
    again = load_model(tmp_path, dtype=torch.float32)
    assert again.head[0].dtype == torch.float32
    assert torch.equal(again.head[0], model.head[0].bfloat16().float())
    assert torch.equal(again.rotary_emb.inv_freq, model.rotary_emb.inv_freq)


def test_save_replaces_a_model(tmp_path):
    save_model(dit(), tmp_path)
    save_model(ar(), tmp_path)
    assert isinstance(load_model(tmp_path), AutoregressiveTransformer)


def test_unknown_path_names_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: looked for .*config.json"):
        load_model(tmp_path / "nowhere")
    save_model(dit(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"looked for .*model.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_truncated_weights_name_the_file(tmp_path, keep):
    save_model(dit(), tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("blocks.1.norm2.weight"), r"missing weights \['blocks.1.norm2.weight'\]"),
        (lambda t: t.update(extra=torch.ones(1)), r"unexpected weights \['extra'\]"),
        (
            lambda t: t.update({"blocks.0.attn_out.weight": torch.ones(16, 15)}),
            r"blocks.0.attn_out.weight must be \[16, 16\], got \[16, 15\]",
        ),
        (
            lambda t: t.update({"output_layer.linear.weight": torch.ones(11, 16)}),
            r"unexpected weights \['output_layer.linear.weight'\]",
        ),
    ],
)
def test_wrong_weights_are_named(tmp_path, change, match):
    save_model(dit(), tmp_path)
    edit_weights(tmp_path, change)
    with pytest.raises(ValueError, match=match):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("n_heads"), r"missing fields \['n_heads'\]"),
        (lambda c: c.update(colour="red"), r"unexpected fields \['colour'\]"),
        (lambda c: c.update(architecture="unet"), r"architecture must be one of .*got 'unet'"),
        (lambda c: c.update(n_heads=3), "config.json: hidden_dim must be a multiple"),
        (lambda c: c.update(dropout="high"), "config.json: "),
    ],
)
def test_wrong_config_is_named(tmp_path, change, match):
    save_model(dit(), tmp_path)
    edit_config(tmp_path, change)
    with pytest.raises(ValueError, match=match):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ['{"architecture": ', "[1, 2]"])
def test_config_that_is_not_an_object(tmp_path, text):
    save_model(dit(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (is not JSON|must hold a JSON object)"):
        load_model(tmp_path)


def test_a_folded_denoiser_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="a folded denoiser has no layout on disk"):
        save_model(dit().folded(), tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_kinds_are_not_confused(tmp_path):
    save_model(dit(), tmp_path / "dit")
    save_model(ar(), tmp_path / "ar")
    with pytest.raises(ValueError, match="must hold a AutoregressiveTransformer, got a DiT"):
        load_ar(tmp_path / "dit")
    with pytest.raises(ValueError, match="must hold a DiT, got a AutoregressiveTransformer"):
        load_denoiser(tmp_path / "ar")


@pytest.fixture
def bundle_folder(tmp_path):
    save_model(dit(), tmp_path / "denoiser")
    save_model(ar(), tmp_path / "ar")
    Tokenizer.train(["some text"], 260).save(tmp_path / "tokenizer.json")
    return tmp_path


def test_bundle_of_three_parts(bundle_folder):
    for energy in ("ar", "coar"):
        whole = load_bundle(bundle_folder, energy=energy)
        assert isinstance(whole.ar, AutoregressiveTransformer) and whole.tokenizer.bos_id == 0
    for energy in (None, "default"):
        assert load_bundle(bundle_folder, energy=energy).ar is None
    other = load_bundle(bundle_folder / "denoiser", energy=bundle_folder / "ar")
    assert other.tokenizer is None and other.ar.bos_id == 0
    assert load_bundle(bundle_folder, dtype=torch.bfloat16).denoiser.head[0].dtype == torch.bfloat16


def test_bundle_errors(bundle_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere: looked for .*denoiser"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"looked for .*ar/config.json"):
        load_bundle(bundle_folder / "denoiser", energy="ar")


def test_bundled_model_is_whole():
    bundle = load_bundle()
    assert bundle.denoiser.vocab_size == bundle.tokenizer.vocab_size + 1
    assert bundle.denoiser.mask_id == bundle.tokenizer.vocab_size
    assert bundle.ar.vocab_size == bundle.tokenizer.vocab_size
    assert bundle.ar.bos_id == bundle.tokenizer.bos_id
    # It learned something: its own language scores far better than the same words out of order.
    text = "He looked at her for a moment, and then he said that he would go to the house."
    ids = torch.tensor([bundle.tokenizer.encode(text)])
    with torch.inference_mode():
        scores = [
            bundle.ar.logits(x0).float().log_softmax(-1).gather(2, x0[..., None]).mean().item()
            for x0 in (ids, ids.flip(1))
        ]
    assert scores[0] > -4.5 and scores[0] > scores[1] + 1.5


def tiny_gpt2(bos_token_id):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=13,
        n_positions=9,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=bos_token_id,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("bos_id", [12, None])
def test_transformers_model_scores_as_itself(tmp_path, bos_id):
    model = tiny_gpt2(bos_id)
    model.save_pretrained(tmp_path)
    scorer = load_ar(tmp_path)
    assert isinstance(scorer, CausalLMScorer) and scorer.bos_id == bos_id
    assert scorer.vocab_size == 13 and scorer.length == 9 and scorer.forbidden_id == -1
    x0 = tokens(3, 9)
    seen = x0 if bos_id is None else torch.cat((torch.full((3, 1), bos_id), x0[:, :-1]), 1)
    wanted = model(input_ids=seen).logits
    first = scorer.first_position
    assert first == (1 if bos_id is None else 0)
    wanted = wanted[:, :-1] if bos_id is None else wanted
    got = scorer.logits(x0)
    assert got.shape == (3, 9, 13)
    torch.testing.assert_close(got[:, first:], wanted, rtol=0, atol=1e-5)
    weight, bias = scorer.head
    torch.testing.assert_close(scorer.hidden(x0)[:, first:] @ weight.T, wanted, rtol=0, atol=1e-5)
    assert bias is None


def test_transformers_model_in_bfloat16_keeps_its_float32_head(tmp_path):
    model = tiny_gpt2(12)
    model.save_pretrained(tmp_path)
    scorer = load_ar(tmp_path, dtype=torch.float32).blocks_to(torch.bfloat16)
    assert {p.dtype for p in scorer.model.base_model.parameters()} == {torch.bfloat16}
    assert torch.equal(scorer.head[0], model.lm_head.weight)
    x0 = tokens(3, 9)
    got, wanted = scorer.logits(x0), load_ar(tmp_path).logits(x0)
    assert got.dtype == torch.float32 and not torch.equal(got, got.bfloat16().float())
    assert 0 < (got - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_transformers_model_with_capped_logits_is_refused():
    model = tiny_gpt2(12)
    head = model.lm_head.forward
    model.lm_head.forward = lambda x: 5 * torch.tanh(head(100 * x))
    with pytest.raises(ValueError, match="GPT2LMHeadModel does more to its logits"):
        CausalLMScorer(model, 12)
