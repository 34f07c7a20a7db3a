"""A tiny random Llama with a tokenizer, as a folder of transformers or as one GGUF file."""

from pathlib import Path

import torch
from tokenizers import Tokenizer as BPE
from tokenizers import models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<|endoftext|>", "<unused>", "a", "b", "ab"]


def tiny_llama(vocab: int = len(WORDS), **options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=vocab,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
        **(sizes | heads | {"tie_word_embeddings": True, "initializer_range": 0.5} | options),
    )
    return LlamaForCausalLM(config).eval()


def tiny_tokenizer() -> BPE:
    bpe = BPE(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="ab"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    return bpe


def save_tiny_llama(folder: Path, **options) -> LlamaForCausalLM:
    model = tiny_llama(**options)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer()).save_pretrained(folder)
    return model


def save_tiny_gguf(path: Path) -> LlamaForCausalLM:
    """The same weights as float32 GGUF, rows of q and k permuted as llama.cpp keeps them."""
    import gguf

    model = tiny_llama()
    config, tensors = model.config, model.state_dict()
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(WORDS)
    out.add_token_types([3, 1, 1, 1, 1])
    out.add_token_merges(["a b"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(0)
    out.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"].numpy())
    out.add_tensor("output_norm.weight", tensors["model.norm.weight"].numpy())
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in names.items():
            weight = tensors[f"model.layers.{layer}.{theirs}.weight"]
            if ours in heads:
                halves = weight.unflatten(0, (heads[ours], 2, -1))
                weight = halves.transpose(1, 2).reshape(weight.shape)
            out.add_tensor(f"blk.{layer}.{ours}.weight", weight.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return model
