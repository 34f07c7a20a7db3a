"""Masked language models of transformers as denoisers: their logits, and nothing special drawn."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_llama
from tokenizers import Tokenizer as Backend
from tokenizers import models as token_models
from tokenizers import pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    EsmTokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.bundle import load_bundle, load_for_sampling, load_pair
from edlm_engine.checkpoints.describe import describe
from edlm_engine.checkpoints.registry import Request
from edlm_engine.models.masked_lm import MaskedLM, MaskedLMWithHead, with_head

TOKENS = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", "a", "b", "c", "d"]
ROWS = len(TOKENS) + 1  # one row pads the vocabulary
CLS, SEP, MASK, FIRST = 0, 2, 4, 5
SIZES = {"vocab_size": ROWS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
NEVER = [0, 1, 2, 3, 9]


def bert():
    options = {"intermediate_size": 32, "max_position_embeddings": 16, "initializer_range": 0.4}
    return BertForMaskedLM(BertConfig(**SIZES, **options))


def roberta():
    options = {"intermediate_size": 32, "max_position_embeddings": 18, "initializer_range": 0.4}
    options |= {"pad_token_id": 1, "type_vocab_size": 1}
    return RobertaForMaskedLM(RobertaConfig(**SIZES, **options))


def modernbert():
    options = {"intermediate_size": 32, "max_position_embeddings": 16, "pad_token_id": 1}
    options |= {"cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}
    options |= {"initializer_range": 0.4, "local_attention": 8, "global_attn_every_n_layers": 2}
    return ModernBertForMaskedLM(ModernBertConfig(**SIZES, **options))


def esm():
    options = {"intermediate_size": 32, "max_position_embeddings": 18, "mask_token_id": MASK}
    options |= {"position_embedding_type": "rotary", "token_dropout": True, "pad_token_id": 1}
    return EsmForMaskedLM(EsmConfig(**SIZES, **options, initializer_range=0.4))


# The model, and whether its last layer is linear and so left out where nothing is drawn.
MODELS = {
    "bert": (bert, True),
    "roberta": (roberta, True),
    "modernbert": (modernbert, True),
    "esm": (esm, False),  # its bias is not that of the layer
}


def save(folder, kind):
    torch.manual_seed(0)
    model = MODELS[kind][0]().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero as made, which would hide a bias that is left out
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    if kind == "esm":  # whose tokenizer is plain Python
        names = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *TOKENS[FIRST:]]
        (folder / "vocab.txt").write_text("\n".join(names))
        EsmTokenizer(folder / "vocab.txt").save_pretrained(folder)
        return model
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    backend = Backend(token_models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"cls": CLS, "pad": 1, "sep": SEP, "unk": 3, "mask": MASK}
    special = {f"{name}_token": TOKENS[i] for name, i in named.items()}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return model


def own_logits(model, xt):
    ends = [torch.full((len(xt), 1), token) for token in (CLS, SEP)]
    seen = torch.cat((ends[0], xt, ends[1]), 1)
    return model(input_ids=seen, attention_mask=torch.ones_like(seen)).logits[:, 1:-1]


def canvas(rows=3, length=7):
    xt = torch.randint(
        FIRST, len(TOKENS), (rows, length), generator=torch.Generator().manual_seed(0)
    )
    xt[:, ::2] = MASK
    return xt


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_it_is_the_model_between_its_tokens(tmp_path, kind):
    model = save(tmp_path, kind)
    denoiser = load_bundle(tmp_path).denoiser
    assert (denoiser.mask_id, denoiser.vocab_size) == (MASK, ROWS)
    # Positions less the tokens around; ESM has no table of positions that starts after the padding.
    assert denoiser.length == (16 if kind == "esm" else 14)
    logits, wanted = denoiser.logits(canvas()), own_logits(model, canvas())
    assert logits[..., NEVER].eq(-torch.inf).all()
    torch.testing.assert_close(logits[..., 4:9], wanted[..., 4:9], rtol=0, atol=1e-4)
    longest = canvas(length=denoiser.length)
    assert denoiser.logits(longest).isfinite()[..., 4:9].all()


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_the_head_apart(tmp_path, kind):
    save(tmp_path, kind)
    denoiser = load_for_sampling(tmp_path, dtype=torch.float32).denoiser
    assert isinstance(denoiser, MaskedLMWithHead) == MODELS[kind][1]
    if not MODELS[kind][1]:
        assert not hasattr(denoiser, "hidden")
        return
    weight, bias = denoiser.head
    logits = denoiser.hidden(canvas()) @ weight.T + bias
    torch.testing.assert_close(logits, denoiser.logits(canvas()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_it_generates_nothing_special(tmp_path, kind):
    save(tmp_path, kind)
    engine = Engine.from_pretrained(tmp_path)
    out = engine.generate(3, config=GenerationConfig(steps=4, length=6), prompt="a b")
    assert ((out.sequences >= FIRST) & (out.sequences < len(TOKENS))).all()
    assert out.texts[0].replace(" ", "").startswith("ab")


def test_blocks_in_bfloat16_under_a_float32_head(tmp_path):
    model = save(tmp_path, "bert")
    request = Request(blocks=torch.bfloat16, head=torch.float32)
    denoiser = load_pair(tmp_path, None, request).denoiser
    assert torch.equal(denoiser.head[0], model.get_output_embeddings().weight)
    assert {p.dtype for p in denoiser.model.parameters()} == {torch.bfloat16}
    logits = denoiser.logits(canvas())
    assert logits.dtype == torch.float32
    wanted = own_logits(model, canvas())[..., 4:9]
    assert 0 < (logits[..., 4:9] - wanted).abs().max() < 0.1 * wanted.abs().max()
    denoiser = load_for_sampling(tmp_path, dtype=torch.bfloat16).denoiser
    assert denoiser.hidden(canvas()).dtype == denoiser.head[0].dtype == torch.bfloat16


def test_a_causal_model_of_the_same_vocabulary_as_energy(tmp_path):
    """As of ModernBERT and the decoders of Ettin: the mask is never scored."""
    save(tmp_path, "modernbert")
    tiny_llama(ROWS).save_pretrained(tmp_path / "decoder")
    engine = Engine.from_pretrained(tmp_path, energy=tmp_path / "decoder")
    assert engine.energy.model.forbidden_id == MASK
    out = engine.generate(2, config=GenerationConfig(steps=4, num_candidates=3, length=6))
    assert (out.energy_evaluations > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("bert.encoder.layer.1.output.dense.bias"),
            r"missing weights \['bert.encoder.layer.1.output.dense.bias'\]",
        ),
        (lambda w: w.update(extra=torch.ones(1)), r"unexpected weights \['extra'\]"),
        (
            lambda w: w.update({"bert.embeddings.LayerNorm.weight": torch.ones(3)}),
            r"LayerNorm.weight must be \[16\], got \[3\]",
        ),
    ],
)
def test_wrong_weights_are_named(tmp_path, change, message):
    save(tmp_path, "bert")
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"model.safetensors.*{message}"):
        load_bundle(tmp_path)


def test_weights_of_other_uses_are_left_out(tmp_path):
    save(tmp_path, "bert")
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {
        "bert.pooler.dense.weight": torch.ones(16, 16),
        "bert.pooler.dense.bias": torch.ones(16),
    }
    weights |= {"cls.seq_relationship.weight": torch.ones(2, 16)}
    save_file(weights, tmp_path / "model.safetensors")
    assert load_bundle(tmp_path).denoiser.mask_id == MASK


@torch.no_grad()
def test_names_of_the_first_files(tmp_path):
    model = save(tmp_path, "bert")
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in weights.items()
    }
    save_file(old, tmp_path / "model.safetensors")
    assert describe(tmp_path)["missing"] == "nothing"
    logits, wanted = load_bundle(tmp_path).denoiser.logits(canvas()), own_logits(model, canvas())
    torch.testing.assert_close(logits[..., 4:9], wanted[..., 4:9], rtol=0, atol=1e-4)


def test_remote_code_is_no_format(tmp_path):
    save(tmp_path, "bert")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoModelForMaskedLM": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"in a format that is known.*model_type 'strange'"):
        load_bundle(tmp_path)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 10\), got 10"):
        MaskedLM(bert(), mask_id=10)
    denoiser = with_head(MaskedLM(bert().eval(), mask_id=MASK, length=6))
    with pytest.raises(ValueError, match=r"xt must be integers with shape \[n, at most 6\]"):
        denoiser.logits(canvas())


def test_described_as_loaded(tmp_path):
    save(tmp_path, "bert")
    place = tmp_path
    facts, model = describe(place), load_bundle(place).denoiser
    assert facts["missing"] == "nothing" and facts["mask"] == model.mask_id
    assert (facts["length"], facts["vocabulary"]) == (model.length, model.vocab_size)
