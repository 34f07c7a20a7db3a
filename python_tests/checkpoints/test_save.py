"""What an engine holds, written and read again."""

import pytest
import torch
from mdlm_layouts import BARE_CONFIG, save, tensors
from tiny_llama import save_tiny_llama, tiny_llama

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig
from edlm_engine.checkpoints.save import save_pair
from edlm_engine.models.bidirectional import BidirectionalCausalLM

CONFIG = GenerationConfig(steps=4, num_candidates=3)


def test_a_pair_generates_the_same_again(tmp_path):
    save(tmp_path / "mdlm", BARE_CONFIG, tensors())
    save(tmp_path / "ar", BARE_CONFIG, tensors(causal=True))
    engine = Engine.from_pretrained(tmp_path / "mdlm", energy="ar", dtype="float32")
    engine.save_pretrained(tmp_path / "out")
    again = Engine.from_pretrained(tmp_path / "out", energy="ar", dtype="float32")
    xt = torch.randint(14, (2, 12))
    with torch.no_grad():
        logits = [e.denoiser.logits(xt, torch.zeros(2)) for e in (engine, again)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    ran = [e.generate(2, config=CONFIG, seed=3).sequences for e in (engine, again)]
    assert torch.equal(*ran)


def test_the_bundled_pair_with_its_tokenizer(tmp_path):
    Engine.from_pretrained().save_pretrained(tmp_path)
    out = Engine.from_pretrained(tmp_path, energy="ar").generate(config=CONFIG)
    assert out.texts is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ar", "denoiser", "tokenizer.json"]


def test_an_energy_of_transformers(tmp_path):
    save(tmp_path / "mdlm", BARE_CONFIG, tensors())
    tiny_llama(14).save_pretrained(tmp_path / "llama")
    engine = Engine.from_pretrained(tmp_path / "mdlm", energy=tmp_path / "llama")
    engine.save_pretrained(tmp_path / "out")
    again = Engine.from_pretrained(tmp_path / "out", energy="ar")
    assert type(again.energy.model.model).__name__ == "LlamaForCausalLM"
    assert again.energy.model.forbidden_id == 13  # the mask


def test_networks_of_others_are_refused_before_anything_is_written(tmp_path):
    save_tiny_llama(tmp_path / "base")
    engine = Engine(BidirectionalCausalLM(tiny_llama(), mask_id=1))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is not a network of this project"):
        engine.save_pretrained(tmp_path / "out")
    own = Engine.from_pretrained()
    own.tokenizer = object()
    with pytest.raises(ValueError, match="tokenizer must be a Tokenizer to be saved, got object"):
        own.save_pretrained(tmp_path / "out")
    strange = Engine(own.denoiser, ARResidualEnergy(_Scorer(own.energy.model)))
    with pytest.raises(ValueError, match="_Scorer is not a network of this project"):
        save_pair(tmp_path / "out", strange.denoiser, strange.energy.model)
    assert not (tmp_path / "out").exists()


class _Scorer:
    def __init__(self, scorer):
        self.vocab_size, self.length = scorer.vocab_size, scorer.length
        self.first_position, self.forbidden_id = 0, -1


@pytest.mark.parametrize("dtype", ["half", "int8", "float", 16])
def test_dtypes_by_name(tmp_path, dtype):
    if dtype in ("half", "float"):
        wanted = getattr(torch, dtype)
        engine = Engine.from_pretrained(energy=None, torch_dtype=dtype)
        assert {p.dtype for p in engine.denoiser.parameters()} == {wanted}
        return
    with pytest.raises(TypeError, match="dtype must be None, a floating-point"):
        Engine.from_pretrained(dtype=dtype)
