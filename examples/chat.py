"""A chat with a model of the LLaDA kind: template, blocks, confidence order, guidance.

With a folder or hub id it is that model (`GSAI-ML/LLaDA-8B-Instruct`, some 16 GB); without one, a
tiny random network of the same kind, to see the settings at work and no sense.

    python examples/chat.py [MODEL]
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import edlm_engine as edlm
from edlm_engine.models.bidirectional import BidirectionalCausalLM

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def random_engine() -> edlm.Engine:
    """LLaDA is a Llama without a causal mask; the bundled tokenizer with a chat's tokens."""
    file = Path(edlm.__file__).parent / "assets" / "novels" / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), chat_template=TEMPLATE)
    special = ["<|user|>", "<|assistant|>", "<|end|>", "<|mask|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 256}
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes, **heads)
    )
    mask_id = tokenizer.convert_tokens_to_ids("<|mask|>")
    return edlm.Engine(BidirectionalCausalLM(llama, mask_id=mask_id), tokenizer=tokenizer)


def main(model: str | None = None, answer: int = 32, steps: int = 16, block: int = 8):
    engine = random_engine() if model is None else edlm.Engine.from_pretrained(model)
    chat = [{"role": "user", "content": "What does a diffusion model do?"}]
    known = engine.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    config = edlm.GenerationConfig(
        steps=steps,  # shared out among the blocks
        length=len(known) + answer,
        order="confidence",  # the likeliest draws first
        block_length=block,  # semi-autoregressive: block after block
        guidance=0.5,  # away from what the model says without the prompt; two evaluations a step
        top_k=50,  # 1 is greedy decoding, what LLaDA calls temperature 0
        record=True,
    )
    out = engine.generate(config=config, seed=0, prompt=chat)
    tokens = out.sequences[0, len(known) :]
    print(repr(engine.tokenizer.decode(tokens.tolist())))
    # The step that revealed each token: rising from block to block, by confidence within.
    print(out.record.step[0, len(known) :].view(-1, block).tolist())
    print(f"{out.nfe[0]} denoiser evaluations for {answer} tokens")
    return known, out


if __name__ == "__main__":
    main(*sys.argv[1:])
