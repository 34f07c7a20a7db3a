"""The AR energy of a causal language model of transformers, for any denoiser of its vocabulary.

Give the folder of one, in the vocabulary of the bundled denoiser, or see it with a tiny random one:

    python examples/hugging_face_energy.py [FOLDER]

For models on the hub a line does: `Engine.from_pretrained("kuleshov-group/mdlm-owt",
energy="gpt2")`.
"""

import sys
from math import log

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import edlm_engine as edlm
from edlm_engine.models import CausalLMScorer


def random_model(vocab_size: int, bos_id: int):
    """Two blocks of width 32, with weights large enough to have opinions."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    ids = {"bos_token_id": bos_id, "eos_token_id": bos_id}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, initializer_range=0.3, **sizes, **ids))


def main(folder: str | None = None, batch_size: int = 4, steps: int = 16, length: int = 24):
    bundled = edlm.Engine.from_pretrained(energy=None)
    tokenizer = bundled.tokenizer
    if folder is None:
        model = random_model(tokenizer.vocab_size, tokenizer.bos_id)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)

    # The BOS in front lets it score the first token as well; None would begin at the second.
    scorer = CausalLMScorer(model, bos_id=tokenizer.bos_id)
    energy = edlm.ARResidualEnergy(scorer)  # -log p_AR(x0) + log q(x0)
    engine = edlm.Engine(bundled.denoiser, energy, tokenizer)

    mean = {}
    for candidates in (1, 8):
        config = edlm.GenerationConfig(steps=steps, num_candidates=candidates, length=length)
        out = engine.generate(batch_size, config=config, seed=0)
        mean[candidates] = log(edlm.metrics.generative_perplexity(out.sequences, scorer))
        print(f"K = {candidates}: {mean[candidates]:.2f} nats a token under {type(model).__name__}")
    return mean


if __name__ == "__main__":
    main(*sys.argv[1:])
