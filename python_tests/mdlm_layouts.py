"""Small random checkpoints with the names, shapes and order of MDLM's, and its arithmetic anew."""

import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

VOCAB, DIM, HEADS, BLOCKS, COND, LENGTH = 14, 16, 2, 2, 8, 12
MASK = VOCAB - 1

HUB_CONFIG = {
    "model_type": "mdlm",
    "architectures": ["MDLM"],
    "auto_map": {"AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
    "cond_dim": 129,  # the default of the published class, which is not that of its weights
    "dropout": 0.1,
    "hidden_dim": DIM,
    "model_length": LENGTH,
    "n_blocks": BLOCKS,
    "n_heads": HEADS,
    "return_dict": False,
    "time_conditioning": False,
    "vocab_size": VOCAB,
}
BARE_CONFIG = {
    "name": "small",
    "type": "ddit",
    "hidden_size": DIM,
    "cond_dim": COND,
    "length": LENGTH,
    "n_blocks": BLOCKS,
    "n_heads": HEADS,
    "dropout": 0.1,
}


def shapes(causal=False):
    """Names of the parameters in the order of the published module, without "backbone."."""
    wanted = {"vocab_embed.embedding": (VOCAB, DIM)}
    if not causal:
        wanted |= {"sigma_map.mlp.0.weight": (COND, 256), "sigma_map.mlp.0.bias": (COND,)}
        wanted |= {"sigma_map.mlp.2.weight": (COND, COND), "sigma_map.mlp.2.bias": (COND,)}
    for i in range(BLOCKS):
        block = {
            "norm1.weight": (DIM,),
            "attn_qkv.weight": (3 * DIM, DIM),
            "attn_out.weight": (DIM, DIM),
            "norm2.weight": (DIM,),
            "mlp.0.weight": (4 * DIM, DIM),
            "mlp.0.bias": (4 * DIM,),
            "mlp.2.weight": (DIM, 4 * DIM),
            "mlp.2.bias": (DIM,),
        }
        if not causal:
            block |= {"adaLN_modulation.weight": (6 * DIM, COND)}
            block |= {"adaLN_modulation.bias": (6 * DIM,)}
        wanted |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    wanted |= {"output_layer.norm_final.weight": (DIM,)}
    wanted |= {"output_layer.linear.weight": (VOCAB, DIM), "output_layer.linear.bias": (VOCAB,)}
    if not causal:
        wanted |= {"output_layer.adaLN_modulation.weight": (2 * DIM, COND)}
        wanted |= {"output_layer.adaLN_modulation.bias": (2 * DIM,)}
    return wanted


def energy_shapes():
    """The same of EDLM's NCE energy: in the order of the module, without "ebm."."""
    last = {"output_layer.linear.weight": (DIM, DIM), "output_layer.linear.bias": (DIM,)}
    return (
        shapes()
        | last
        | {
            "vocab_proj.weight": (DIM, 2 * DIM),
            "vocab_proj.bias": (DIM,),
            "energy_head.0.weight": (DIM, DIM),
            "energy_head.0.bias": (DIM,),
            "energy_head.2.weight": (1, DIM),
        }
    )


def tensors(causal=False, prefix="", seed=0, wanted=None):
    random = torch.Generator().manual_seed(seed)
    made = {
        prefix + name: 0.4 * torch.randn(shape, generator=random)
        for name, shape in (wanted or shapes(causal)).items()
    }
    half = DIM // HEADS // 2
    made[f"{prefix}rotary_emb.inv_freq"] = 10_000.0 ** -(torch.arange(half) / half)
    return made


def save(folder, config, weights):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def norm(x, weight):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turn(x):
    """Each pair (x_j, x_{j + d/2}) of a head [.., L, d] turned by l / 10000^(2j/d)."""
    length, size = x.shape[-2:]
    half = size // 2
    place = torch.arange(length, dtype=x.dtype)[:, None]
    angle = place * 10_000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    first, second = x[..., :half], x[..., half:]
    rotated = first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()
    return torch.cat(rotated, dim=-1)


def attend(qkv, causal):
    """[B, L, 3 D], rows ordered (three, head, dimension)."""
    batch, length, _ = qkv.shape
    q, k, v = qkv.view(batch, length, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
    scores = turn(q) @ turn(k).transpose(-1, -2) / math.sqrt(DIM // HEADS)
    if causal:
        scores = scores + torch.full((length, length), -torch.inf).triu(1)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, DIM)


def restated(w, tokens, sigma=None, causal=False):
    """Logits [B, L, V] of the network in float64; sigma [B] is 0 by default."""
    w = {name: tensor.double() for name, tensor in w.items()}
    return through(w, w["vocab_embed.embedding"][tokens], sigma, causal)


def restated_energy(w, x0, xt, sigma=None):
    """Energies [B] in float64 of x0 and xt [B, L], as EDLM's code computes them."""
    w = {name: tensor.double() for name, tensor in w.items()}
    both = torch.cat([w["vocab_embed.embedding"][tokens] for tokens in (xt, x0)], -1)
    x = through(w, F.linear(both, w["vocab_proj.weight"], w["vocab_proj.bias"]), sigma)
    inner = F.linear(x.mean(1), w["energy_head.0.weight"], w["energy_head.0.bias"])
    return F.linear(inner.relu(), w["energy_head.2.weight"])[:, 0]


def through(w, x, sigma=None, causal=False):
    """Blocks and last layer on x [B, L, D], of weights in float64."""
    c = None
    if not causal:
        sigma = torch.zeros(len(x)) if sigma is None else sigma
        angle = sigma.double()[:, None] * torch.exp(
            -math.log(10_000) * torch.arange(128).double() / 128
        )
        waves = torch.cat((angle.cos(), angle.sin()), -1)
        inner = F.silu(F.linear(waves, w["sigma_map.mlp.0.weight"], w["sigma_map.mlp.0.bias"]))
        c = F.silu(F.linear(inner, w["sigma_map.mlp.2.weight"], w["sigma_map.mlp.2.bias"]))

    def adapt(name, parts):
        if causal:
            return [torch.zeros(1), torch.zeros(1), torch.ones(1)] * 2
        name = f"{name}.adaLN_modulation"
        return F.linear(c, w[f"{name}.weight"], w[f"{name}.bias"])[:, None].chunk(parts, -1)

    for i in range(BLOCKS):
        b = f"blocks.{i}"
        shift, scale, gate, shift2, scale2, gate2 = adapt(b, 6)
        inner = norm(x, w[f"{b}.norm1.weight"]) * (1 + scale) + shift
        x = x + gate * (
            attend(inner @ w[f"{b}.attn_qkv.weight"].T, causal) @ w[f"{b}.attn_out.weight"].T
        )
        inner = norm(x, w[f"{b}.norm2.weight"]) * (1 + scale2) + shift2
        inner = F.linear(inner, w[f"{b}.mlp.0.weight"], w[f"{b}.mlp.0.bias"])
        inner = F.gelu(inner, approximate="tanh")
        x = x + gate2 * F.linear(inner, w[f"{b}.mlp.2.weight"], w[f"{b}.mlp.2.bias"])
    shift, scale, *_ = adapt("output_layer", 2)
    x = norm(x, w["output_layer.norm_final.weight"]) * (1 + scale) + shift
    return F.linear(x, w["output_layer.linear.weight"], w["output_layer.linear.bias"])
