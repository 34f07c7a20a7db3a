"""Training checkpoints of MDLM: averaged weights by order, and a pickle of which nothing runs."""

import sys
import types

import pytest
import torch
from mdlm_layouts import (
    BARE_CONFIG,
    LENGTH,
    MASK,
    energy_shapes,
    restated,
    restated_energy,
    shapes,
    tensors,
)

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.bundle import load_ar, load_bundle, load_for_sampling
from edlm_engine.checkpoints.describe import describe
from edlm_engine.checkpoints.registry import Request
from edlm_engine.models import AutoregressiveTransformer, DiT

PREFIX = "backbone."
MODEL = BARE_CONFIG | {"scale_by_sigma": True, "tie_word_embeddings": False}
CONFIG = {
    "backbone": "dit",
    "diffusion": "absorbing_state",
    "parameterization": "subs",
    "time_conditioning": False,
    "model": MODEL,
}


@pytest.fixture
def omegaconf():
    """Classes under the names and with the fields of omegaconf, and modules that hold them."""
    made, modules = {}, {"omegaconf": types.ModuleType("omegaconf")}
    for module, names in (
        ("omegaconf.dictconfig", ["DictConfig"]),
        ("omegaconf.nodes", ["AnyNode"]),
        ("omegaconf.base", ["ContainerMetadata", "Metadata"]),
        ("transformers.models.gpt2.tokenization_gpt2_fast", ["GPT2TokenizerFast"]),
    ):
        fake = types.ModuleType(module)
        for name in names:
            made[name] = type(name, (), {"__module__": module, "__qualname__": name})
            setattr(fake, name, made[name])
        modules[module] = fake

    def wrap(value, parent=None):
        kind = "DictConfig" if isinstance(value, dict) else "AnyNode"
        node = made[kind]()
        meta = made["ContainerMetadata" if kind == "DictConfig" else "Metadata"]()
        meta.ref_type, meta.object_type, meta.key = dict, dict, None
        node._metadata, node._parent = meta, parent
        if kind == "DictConfig":
            node._content = {key: wrap(item, node) for key, item in value.items()}
        else:
            node._val = value
        return node

    return types.SimpleNamespace(wrap=wrap, tokenizer=made["GPT2TokenizerFast"], modules=modules)


@pytest.fixture
def write(tmp_path, omegaconf, monkeypatch):
    def write(causal=False, config=None, **changes):
        config = config or CONFIG | {"parameterization": "ar" if causal else "subs"}
        averaged = tensors(causal, seed=1)
        content = {
            "epoch": 3,
            "global_step": 1000,
            "pytorch-lightning_version": "2.2.1",
            "state_dict": tensors(causal, prefix=PREFIX),
            "hyper_parameters": {
                "config": omegaconf.wrap(config),
                "tokenizer": omegaconf.tokenizer(),
            },
            "ema": {
                "decay": 0.9999,
                "num_updates": 1000,
                "shadow_params": [averaged[name] for name in shapes(causal)],
            },
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
        }
        path = tmp_path / "model.ckpt"
        with monkeypatch.context() as patch:
            for name, module in omegaconf.modules.items():
                patch.setitem(sys.modules, name, module)
            torch.save(content | changes, path)
        return path

    return write


def tokens(rows=3):
    return torch.randint(MASK + 1, (rows, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("weights", "seed"), [("ema", 1), ("raw", 0)])
@torch.no_grad()
def test_averaged_or_raw_weights(write, weights, seed):
    path = write()
    denoiser = load_for_sampling(path, dtype=torch.float32, weights=weights).denoiser
    wanted = restated(tensors(seed=seed), tokens()).float()
    torch.testing.assert_close(denoiser.logits(tokens(), torch.ones(3)), wanted, rtol=0, atol=2e-4)
    assert "omegaconf" not in sys.modules


@torch.no_grad()
def test_left_to_right(write):
    model, x0 = load_ar(write(causal=True)), tokens() % MASK
    assert type(model) is AutoregressiveTransformer and model.forbidden_id == MASK
    wanted = restated(tensors(causal=True, seed=1), x0, causal=True).float()[:, :-1]
    torch.testing.assert_close(model.logits(x0)[:, 1:], wanted, rtol=0, atol=2e-4)


def test_it_generates(write):
    out = Engine.from_pretrained(write()).generate(2, config=GenerationConfig(steps=4))
    assert (out.sequences < MASK).all()


def test_the_layout_of_duo_with_its_masked_algorithm(write, tmp_path):
    algorithm = {"name": "mdlm", "parameterization": "subs", "time_conditioning": False}
    path = write(config={"algo": algorithm, "model": MODEL})
    (tmp_path / "duo").mkdir()  # the name of a folder says nothing where the file does
    assert type(load_bundle(path.rename(tmp_path / "duo" / "mdlm.ckpt")).denoiser) is DiT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algo": {"name": "duo", "parameterization": "mean"}}, "duo: uniform-state diffusion"),
        ({"diffusion": "uniform"}, "uniform: uniform-state diffusion"),
        ({"parameterization": "sedd"}, "sedd: score-entropy"),
        ({"parameterization": "d3pm"}, r"must be one of \['ar', 'subs'\], got 'd3pm'"),
        ({"parameterization": "ar"}, "says left to right, its weights are those of the other"),
        ({"model": MODEL | {"n_heads": None}}, r"config.model must have integers \['n_heads'\]"),
        ({"model": None}, "must hold hyper_parameters with a config.model"),
    ],
)
def test_other_runs_are_named(write, change, message):
    path = write(config=CONFIG | change)
    with pytest.raises(ValueError, match=rf"model.ckpt.*{message}"):
        load_bundle(path)


def test_averages_are_checked_by_count_and_shape(write):
    shadows = [tensors()[name] for name in shapes()]
    path = write(ema={"shadow_params": shadows[:-1]})
    with pytest.raises(ValueError, match=r"must hold 30 tensors, got 29; weights=\"raw\""):
        load_bundle(path)
    swapped = [shadows[1], shadows[0], *shadows[2:]]
    with pytest.raises(ValueError, match=r"shadow_params\[0\] must have the shape of vocab_embed"):
        load_bundle(write(ema={"shadow_params": swapped}))
    with pytest.raises(ValueError, match=r"has no ema\.shadow_params"):
        load_bundle(write(ema=None))
    with pytest.raises(ValueError, match='weights must be "ema" or "raw", got "best"'):
        Request(weights="best")


@pytest.fixture
def write_energy(write):
    """A run of EDLM: its frozen denoiser, and its energy by two names."""

    def write_energy(frozen=PREFIX * 2, config=CONFIG, without=(), **changes):
        averaged = tensors(wanted=energy_shapes(), seed=1)
        state = tensors(prefix=frozen, seed=2)
        for prefix in ("backbone.ebm.", "ebm."):
            state |= tensors(prefix=prefix, wanted=energy_shapes())
        state = {name: tensor for name, tensor in state.items() if name not in without}
        shadows = [averaged[name] for name in energy_shapes()]
        return write(
            config=config, state_dict=state, **{"ema": {"shadow_params": shadows}} | changes
        )

    return write_energy


def some_candidates():
    xt = tokens()
    xt[:, ::2] = MASK
    drawn = torch.arange(2 * LENGTH).view(2, LENGTH) % MASK
    return torch.where((xt == MASK)[:, None], drawn, xt[:, None]), xt


@pytest.mark.parametrize("frozen", [PREFIX, PREFIX * 2])
@pytest.mark.parametrize(("weights", "seed"), [("ema", 1), ("raw", 0)])
@torch.no_grad()
def test_the_energy_of_edlm_and_its_denoiser(write_energy, frozen, weights, seed):
    path = write_energy(frozen)
    engine = Engine.from_pretrained(path, energy="nce", dtype=torch.float32, weights=weights)
    x0, xt = some_candidates()
    got = engine.energy(x0, xt, torch.zeros(3, 2), torch.ones(3))
    w = tensors(wanted=energy_shapes(), seed=seed)
    wanted = torch.stack([restated_energy(w, x0[:, k], xt) for k in range(2)], 1)
    torch.testing.assert_close(got, wanted.float(), rtol=0, atol=2e-4)
    # It was frozen, so it is the same whichever weights are asked for.
    denoiser = restated(tensors(seed=2), xt).float()
    torch.testing.assert_close(
        engine.denoiser.logits(xt, torch.ones(3)), denoiser, rtol=0, atol=2e-4
    )
    out = engine.generate(2, config=GenerationConfig(steps=4, num_candidates=3))
    assert (out.sequences < MASK).all() and (out.energy_evaluations > 0).all()
    assert Engine.from_pretrained(path, weights=weights).energy is None
    other = Engine.from_pretrained(path, energy=path, dtype=torch.float32, weights=weights)
    assert torch.equal(other.energy(x0, xt, torch.zeros(3, 2), torch.ones(3)), got)


def test_an_energy_of_edlm_is_described(write_energy):
    path = write_energy()
    facts = describe(path)
    assert facts["kind"] == "denoiser" and facts["energies"][str(path)] == "fits"
    assert describe(path, energy=True)["kind"] == "NCE energy"


@pytest.mark.parametrize("prefix", ["ebm.", "backbone.ebm."])
def test_damaged_energies_of_edlm_are_named(write_energy, prefix):
    path = write_energy(without={f"{prefix}vocab_proj.bias"})
    with pytest.raises(ValueError, match=r"vocab_proj\.bias"):
        Engine.from_pretrained(path, energy="nce")
    assert Engine.from_pretrained(write_energy()).energy is None


def test_other_energies_of_edlm_are_named(write_energy, write):
    path = write_energy(config=CONFIG | {"ebm_backbone": "ar"})
    with pytest.raises(ValueError, match=r"ebm_backbone must be one of .* got 'ar'"):
        Engine.from_pretrained(path, energy="nce")
    with pytest.raises(ValueError, match="must hold a left-to-right model, got a FoldedDiT"):
        Engine.from_pretrained(write(), energy="nce")
    shadows = [tensors(wanted=energy_shapes())[name] for name in energy_shapes()]
    path = write_energy(ema={"shadow_params": shadows[1:]})
    with pytest.raises(ValueError, match=r"must hold 35 tensors, got 34; weights=\"raw\""):
        Engine.from_pretrained(path, energy="nce")


class Harmful:
    """What a hostile pickle would do: write a file as it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("place", ["hyper_parameters", "callbacks", "state_dict"])
def test_a_pickle_with_code_is_refused_and_not_run(write, tmp_path, place):
    path = write(**{place: {"config": Harmful(tmp_path / "written")}})
    with pytest.raises(ValueError, match=r"holds more than weights \(.*open\) and was not read"):
        load_bundle(path)
    assert not (tmp_path / "written").exists()
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert any(name.endswith(".open") for name in named)  # the file does carry code


def test_names_of_allowed_libraries_run_nothing(write, tmp_path):
    """A function of an allowed library is a stand-in as well: called, it does nothing."""

    class Call:
        def __reduce__(self):
            import transformers.utils.hub as hub

            return hub.cached_file, (str(tmp_path), "config.json")

    path = write(callbacks={"x": Call()})
    assert type(load_bundle(path).denoiser) is DiT


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_truncated_files_are_named(write, keep):
    path = write()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep == 0.5 else keep])
    with pytest.raises(ValueError, match=r"model.ckpt is damaged or not a file of torch.save"):
        load_bundle(path)


def test_a_file_without_weights(write, tmp_path):
    torch.save({"epoch": 1}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="must hold a state_dict, as Lightning writes it"):
        load_bundle(tmp_path / "model.ckpt")
