"""`edlm train adapt` on a tiny Llama: what it learns, resuming, sources, and the sampler's law."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from enumeration import ancestral, p_value
from safetensors.torch import load_file
from scipy import stats
from tiny_llama import save_tiny_gguf, save_tiny_llama, tiny_llama

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.adapted import load_adapted
from edlm_engine.checkpoints.files import read_json
from edlm_engine.training.adapt import build, show_later_positions, tokenizer
from edlm_engine.training.bundle_adapted import bundle_adapted
from edlm_engine.training.config import AdaptConfig
from edlm_engine.training.run_log import read_log
from edlm_engine.training.trainer import train

pytestmark = pytest.mark.usefixtures("single_thread")

FILES = {"low-rank": "adapter_model.safetensors", "full": "model.safetensors"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_tiny_llama(folder)
    return folder


@pytest.fixture
def config(tmp_path, base):
    random = np.random.default_rng(0)
    for name, words in (("train", 4000), ("held", 400)):
        # A word is likely followed by itself: something to learn.
        text = ["a"]
        for stay in random.random(words) < 0.8:
            text.append(text[-1] if stay else str(random.choice(["a", "b", "ab"])))
        (tmp_path / f"{name}.txt").write_text(" ".join(text))
    return AdaptConfig(
        data=(str(tmp_path),),
        held_out=("held*",),
        out=str(tmp_path / "run"),
        base=str(base),
        mask="<unused>",
        rank=4,
        length=12,
        steps=40,
        batch_size=4,
        eval_every=20,
        eval_windows=16,
        final_windows=16,
        checkpoint_every=20,
        lr=1e-2,
        precision="fp32",
    )


@pytest.mark.parametrize("weights", ["low-rank", "full"])
@pytest.mark.parametrize("mask", ["<unused>", None])
def test_a_run_learns_and_its_folder_generates(config, base, weights, mask):
    before = {name: p.clone() for name, p in tiny_llama().named_parameters()}
    config = dataclasses.replace(config, weights=weights, mask=mask, ema=0.9)
    result = train("adapt", config)
    log = [entry for entry in map(dict, _log(config)) if "held_out_loss" in entry]
    assert result.finished and result.held_out_loss < log[0]["held_out_loss"] + 0.05
    assert result.held_out_loss < 1.05 * np.log(3)
    pair = load_adapted(config.out)
    assert pair.denoiser.mask_id == (1 if mask else 5) and pair.denoiser.length == 12
    own = dict(pair.ar.model.named_parameters())
    shared = [name for name, p in pair.denoiser.model.named_parameters() if own.get(name) is p]
    # A low-rank change leaves every base tensor as it was, and both halves hold that very tensor.
    assert set(shared) == (set(own) if weights == "low-rank" else set())
    for name, p in before.items():
        assert torch.equal(own[name][: len(p)], p)
    out = Engine.from_pretrained(config.out, dtype=torch.float32).generate(
        3, config=GenerationConfig(steps=4, num_candidates=3)
    )
    assert (out.sequences != pair.denoiser.mask_id).all() and out.ess.shape == (3, 4)


def _log(config):
    return read_log(Path(config.out))


@pytest.mark.parametrize("weights", ["low-rank", "full"])
def test_a_resumed_run_is_the_run_never_stopped(config, tmp_path, weights):
    config = dataclasses.replace(config, weights=weights, anneal=25)
    train("adapt", config)
    stopped = dataclasses.replace(config, out=str(tmp_path / "stopped"))
    # Both are before the cooldown, where the number of steps does not matter.
    train("adapt", dataclasses.replace(stopped, steps=20, cooldown=1e-9))
    train("adapt", dataclasses.replace(stopped, resume=True))
    whole = load_file(tmp_path / "run" / FILES[weights])
    parts = load_file(tmp_path / "stopped" / FILES[weights])
    assert whole.keys() == parts.keys() and len(whole) > 10
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_can_start_from_an_earlier_one(config, tmp_path):
    train("adapt", config)
    tokens = tokenizer(config, [])
    started = build(dataclasses.replace(config, start=config.out), tokens)
    stored = load_file(tmp_path / "run" / FILES["low-rank"])
    for name, parameter in started.model.named_parameters():
        if ".lora_" in name:
            wanted = stored["base_model.model." + name.replace(".default.weight", ".weight")]
            torch.testing.assert_close(parameter.data, wanted, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="start must be of the same base and rank"):
        build(dataclasses.replace(config, start=config.out, rank=3), tokens)
    with pytest.raises(ValueError, match="start must be a full folder"):
        build(dataclasses.replace(config, start=config.out, weights="full"), tokens)


def test_a_gguf_file_is_the_same_base(config, tmp_path):
    save_tiny_gguf(tmp_path / "tiny.gguf")
    by_file = dataclasses.replace(config, base=str(tmp_path / "tiny.gguf"), bos="<|endoftext|>")
    train("adapt", dataclasses.replace(by_file, out=str(tmp_path / "gguf"), steps=2))
    train("adapt", dataclasses.replace(config, steps=2))
    pairs = [load_adapted(tmp_path / name) for name in ("gguf", "run")]
    x0 = torch.randint(2, 5, (2, 12))
    with torch.no_grad():
        scores = [pair.ar.logits(x0) for pair in pairs]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-4)
    assert pairs[0].tokenizer.encode("a b ab") == [2, 3, 4]


def test_training_on_text_drawn_from_the_base(config, tmp_path):
    config = dataclasses.replace(config, self_samples=40, steps=4, data=(), held_out=())
    assert train("adapt", config).finished
    drawn = np.concatenate([np.load(f) for f in sorted((tmp_path / "run" / "drawn").glob("*.npy"))])
    assert drawn.shape == (40, 48) and not (drawn == 1).any()
    # The first token's law, without the mask, which is never text.
    with torch.no_grad():
        logits = tiny_llama()(input_ids=torch.zeros(1, 1, dtype=torch.int64)).logits[0, 0]
    logits[1] = -torch.inf
    counts = np.bincount(drawn[:, 0], minlength=5)
    keep = [0, 2, 3, 4]
    expected = logits.double().softmax(0).numpy()[keep] * 40
    assert stats.chisquare(counts[keep], expected).pvalue > 1e-3


def test_the_annealed_mask_opens(config):
    model = build(config, tokenizer(config, []))
    config = dataclasses.replace(config, anneal=10)
    shown = []
    for step in range(11):
        show_later_positions(model, config, step)
        shown.append(1.0 if model.visible is None else model.visible.float().mean().item())
    assert shown[0] == pytest.approx(7 / 13) and shown[-1] == 1.0
    assert all(a < b + 0.1 for a, b in pairwise(shown))


class Adapted:
    """The adapted denoiser for `enumeration`, from merged weights and transformers alone."""

    def __init__(self, folder, base):
        tensors = load_file(folder / FILES["low-rank"])
        options = read_json(folder / "adapter_config.json")
        self.model, scale = tiny_llama(), options["lora_alpha"] / options["r"]
        self.model.set_attn_implementation("eager")
        self.vocab, self.length, self.mask_id, self.tokens = 5, 3, 1, [0, 2, 3, 4]
        self.mask_embedding = tensors.pop("mask_embedding")
        with torch.no_grad():
            for name in {name.rsplit(".lora_", 1)[0] for name in tensors}:
                a, b = (tensors[f"{name}.lora_{x}.weight"] for x in "AB")
                layer = self.model.get_submodule(name.removeprefix("base_model.model."))
                layer.weight += scale * b @ a

    @torch.no_grad()
    def probs(self, xt, sigma, temperature=1.0):
        seen = torch.tensor([[0, *xt]])
        embedded = self.model.get_input_embeddings()(seen)
        embedded[seen == self.mask_id] = self.mask_embedding
        mask = torch.zeros(1, 1, 4, 4)
        logits = self.model(inputs_embeds=embedded, attention_mask=mask).logits[0, :3].double()
        logits[:, self.mask_id] = -torch.inf
        return logits.softmax(-1).numpy()


def test_the_sampler_with_an_adapted_pair_equals_enumeration(config, base):
    config = dataclasses.replace(config, length=3, steps=60)
    train("adapt", config)
    engine = Engine.from_pretrained(config.out, dtype=torch.float32)
    sampling = GenerationConfig(steps=2, num_candidates=2)
    drawn = np.concatenate(
        [engine.generate(5000, config=sampling, seed=s).sequences.numpy() for s in range(4)]
    )
    denoiser = Adapted(Path(config.out), base)

    @torch.no_grad()
    def energy(x0, xt, log_q, t):
        logits = tiny_llama()(input_ids=torch.tensor([[0, *x0[:-1]]])).logits[0].double()
        logits[:, 1] = -torch.inf
        log_p = F.log_softmax(logits, -1)[range(3), list(x0)].sum()
        return -float(log_p) + log_q.sum()

    times = engine.schedule.times(2).tolist()
    start = (1, 1, 1)
    exact = ancestral(denoiser, start, times, lambda t: 0.0, energy, 2, sampling.energy_times)
    assert p_value(drawn, exact) > 1e-3
    without = ancestral(denoiser, start, times, lambda t: 0.0)
    assert p_value(drawn, without) < 1e-6


def test_the_form_that_ships(config, tmp_path):
    train("adapt", config)
    recipe = bundle_adapted(config.out, tmp_path / "shipped", config.data, windows=8)
    held_out = recipe["held_out"]
    assert held_out["windows"] == 8
    # A word and the space after it: two or three characters a token.
    per_token, per_character = (held_out[f"bound, nats per {x}"] for x in ("token", "character"))
    assert 2 < per_token / per_character < 3
    stored = load_file(tmp_path / "shipped" / FILES["low-rank"])
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    names = {"adapter_config.json", "config.json", "recipe.json", "log.jsonl", "loss.png"}
    assert {f.name for f in (tmp_path / "shipped").iterdir()} == names | {FILES["low-rank"]}
    assert read_json(tmp_path / "shipped" / "recipe.json") == recipe
    out = Engine.from_pretrained(tmp_path / "shipped").generate(2, config=GenerationConfig(steps=2))
    assert out.texts is not None
    full = dataclasses.replace(config, weights="full", out=str(tmp_path / "full"), steps=2)
    train("adapt", full)
    with pytest.raises(ValueError, match="run must be of low-rank weights, got full"):
        bundle_adapted(full.out, tmp_path / "other", config.data)
