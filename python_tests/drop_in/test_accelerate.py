"""`accelerate`: what it recognises, how its method behaves, and what it refuses."""

import copy
import subprocess
import sys

import pytest
import torch
from enumeration import TinyDenoiser
from mdlm_forks import CosineNoise, Duo, Edlm, Mdlm, Remdm
from tiny_models import TableAR
from torch import nn

from edlm_engine import ARResidualEnergy, Engine
from edlm_engine.drop_in import accelerate
from edlm_engine.drop_in.layouts import ModuleSchedule
from edlm_engine.drop_in.models import HeadedDenoiser, ModuleDenoiser, ModuleEnergy

pytestmark = pytest.mark.usefixtures("single_thread")

MASK = 3


@pytest.fixture
def tiny():
    return TinyDenoiser(vocab=4, length=3, mask_id=MASK)


@pytest.fixture
def ar():
    return TableAR(4, 3, first_position=1, forbidden_id=MASK)


def forks(tiny, ar):
    return [Mdlm(tiny), Edlm(tiny, ar), Edlm(tiny), Remdm(tiny), Duo(tiny)]


def sampled(module, *args, **kwargs):
    loop = module.generate_samples if isinstance(module, Duo) else module._sample
    return loop(*args, **kwargs)


@pytest.mark.parametrize("semantics", ["paper", "released"])
def test_every_fork_returns_what_it_returned(tiny, ar, semantics):
    for module in forks(tiny, ar):
        first = (2,) if isinstance(module, Duo) else ()
        own = sampled(module, *first)
        with accelerate(module, semantics=semantics) as handle:
            assert isinstance(handle.engine, Engine)
            for args, kwargs in (
                (first, {}),
                (first, {"num_steps": 5}),
                (first, {"num_steps": None, "eps": 1e-3}),
                ((4,) if first else (5, 1e-4), {}),
            ):
                ours = sampled(module, *args, **kwargs)
                assert type(ours) is torch.Tensor and ours.dtype == own.dtype == torch.int64
                assert ours.shape == (args[0] if first else 2, 3) and ours.device == own.device
                assert not ours.requires_grad and (ours < MASK).all()
            assert module.restore_model_and_sample(4).shape == (2, 3)
        assert not {"_sample", "generate_samples"} & set(vars(module))


def test_kinds_of_models(tiny, ar):
    tilted = TinyDenoiser(vocab=4, length=3, mask_id=MASK, tilt=0.5)
    for module in forks(tiny, ar):
        assert type(accelerate(module).engine.denoiser) is HeadedDenoiser
    # Where the last product is not the last thing that happens, the module's own output is taken.
    module = Mdlm(tilted, time_conditioning=True)
    assert type(accelerate(module).engine.denoiser) is ModuleDenoiser
    assert accelerate(Mdlm(tiny)).engine.energy is None
    assert isinstance(accelerate(Edlm(tiny, ar)).engine.energy, ARResidualEnergy)
    learned = accelerate(Edlm(tiny)).engine.energy
    assert isinstance(learned, ModuleEnergy) and not learned.residual


def test_hidden_states_and_head_are_the_modules_output(tiny):
    module = Mdlm(tiny)
    denoiser = accelerate(module).engine.denoiser
    xt, sigma = torch.tensor([[MASK, 1, MASK], [0, MASK, MASK]]), torch.ones(2)
    weight, bias = denoiser.head
    logits = nn.functional.linear(denoiser.hidden(xt, sigma), weight, bias)
    for value in (logits, denoiser.logits(xt, sigma)):
        log_probs = torch.log_softmax(value[..., :MASK], dim=-1)
        wanted = module.forward(xt, sigma)[..., :MASK]
        assert torch.allclose(log_probs[xt == MASK], wanted[xt == MASK], atol=1e-5)


@pytest.mark.parametrize("carry_over", [False, True])
def test_the_two_ways_to_an_ar_energy_agree(tiny, ar, carry_over):
    module = Edlm(tiny, ar, ar_carry_over=carry_over)
    energy = accelerate(module).engine.energy
    whole = ModuleEnergy(module, residual=True)
    assert energy.first_position == whole.first_position == 1
    assert energy.carry_over == carry_over
    xt = torch.tensor([[MASK, 1, MASK], [0, MASK, MASK], [MASK, MASK, MASK]])
    x0 = torch.randint(MASK, (3, 4, 3), generator=torch.Generator().manual_seed(0))
    x0 = torch.where(xt[:, None] == MASK, x0, xt[:, None])
    log_q, t = torch.randn(3, 4), torch.ones(3)
    with torch.no_grad():
        assert torch.allclose(energy(x0, xt, log_q, t), whole(x0, xt, log_q, t), atol=1e-4)


def test_an_energy_without_a_last_product_is_called_as_it_is(tiny, ar):
    module = Edlm(tiny, ar)
    product = module.ebm.output_layer
    module.ebm.output_layer = nn.Sequential(product, nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        module.ebm.output_layer[1].weight.copy_(torch.eye(4))
    # The first product onto the vocabulary is not the last: only the last one will do.
    energy = accelerate(module).engine.energy
    assert isinstance(energy, ARResidualEnergy) and energy.model.last is module.ebm.output_layer[1]
    module.ebm.output_layer = Tripled(product)
    energy = accelerate(module).engine.energy
    assert isinstance(energy, ModuleEnergy) and energy.residual
    assert sampled(module).shape == (2, 3)


class Tripled(nn.Module):
    """An output layer whose product is not what the module returns."""

    def __init__(self, product):
        super().__init__()
        self.product = product

    def forward(self, x):
        return 3 * self.product(x)


def test_settings_are_read_at_each_call(tiny, ar):
    module = Edlm(tiny, ar, ar_carry_over=True)
    with accelerate(module) as handle:
        sampled(module)
        assert handle.engine.energy.carry_over and handle.generation.ess.shape[0] == 2
        sampling = module.config.sampling
        sampling.ar_carry_over, sampling.is_size, sampling.is_end = False, 5, 0.99
        module.config.loader.eval_batch_size = 7
        assert sampled(module, 4).shape == (7, 3) and not handle.engine.energy.carry_over
        assert (handle.generation.energy_evaluations <= 5).all()  # one step of five candidates
        module.noise = CosineNoise()
        sampled(module)
        assert isinstance(handle.engine.schedule, ModuleSchedule)
        assert handle.engine.schedule.sigma(torch.tensor(0.5)) == pytest.approx(
            float(CosineNoise()(torch.tensor(0.5, dtype=torch.float64))[0])
        )


def test_weights_are_followed(tiny):
    module = Mdlm(tiny)
    for semantics in ("paper", "released"):
        with accelerate(module, semantics=semantics), torch.no_grad():
            for token in range(3):
                module.backbone.head.bias.zero_()[token] = 50
                assert (sampled(module) == token).all()


def test_fields_of_the_configuration(tiny):
    module = Mdlm(tiny)
    with accelerate(module, config={"steps": 1, "top_p": 1e-9}) as handle:
        first = sampled(module)
        assert (first == sampled(module)).all() and (handle.generation.nfe == 1).all()
        sampled(module, num_steps=50)  # what a call asks for counts most
        assert (handle.generation.nfe > 1).any()
    with pytest.raises(ValueError, match="config has no field candidates"):
        accelerate(module, config={"candidates": 2})


def test_continuous_time(tiny):
    module = Mdlm(tiny)
    with accelerate(module, config={"steps": None}) as handle:
        sampled(module)
    assert (handle.generation.nfe == 3).all()
    schedule = ModuleSchedule(module, 1e-5)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    assert torch.allclose(schedule.mask_prob(t), t, atol=1e-12)
    module.noise = CosineNoise()
    assert torch.allclose(schedule.time_of(schedule.mask_prob(t)), t, atol=1e-12)


@pytest.mark.parametrize("semantics", ["paper", "released"])
def test_randomness_is_torchs_or_the_generators(tiny, semantics):
    module = Mdlm(tiny, batch_size=40)
    with accelerate(module, semantics=semantics):
        torch.manual_seed(3)
        first, second = sampled(module), sampled(module)
        torch.manual_seed(3)
        assert torch.equal(sampled(module), first) and not torch.equal(first, second)
        assert not torch.equal(first[:20], first[20:])
    generator = torch.Generator().manual_seed(3)
    with accelerate(module, semantics=semantics, generator=generator):
        state = torch.get_rng_state()
        assert torch.equal(sampled(module), first)
        assert torch.equal(torch.get_rng_state(), state)


def test_restore_and_again(tiny):
    module = Mdlm(tiny)
    first = accelerate(module)
    second = accelerate(module, semantics="released")
    assert "_sample" in vars(module) and sampled(module, num_steps=2).shape == (2, 3)
    second.restore()
    sampled(module)
    assert first.generation is not None and second.generation is None
    first.restore()
    first.restore()
    assert "_sample" not in vars(module)


def test_a_copy_samples_itself(tiny):
    module = Mdlm(tiny)
    with accelerate(module):
        twin = copy.deepcopy(module)
        with torch.no_grad():
            twin.backbone.head.bias[2] = 50
            module.backbone.head.bias[1] = 50
        assert (sampled(twin) == 2).all() and (sampled(module) == 1).all()


@pytest.mark.parametrize("semantics", ["paper", "released"])
def test_training_goes_on(tiny, ar, semantics):
    """What the module keeps from a call can be trained with, and its parts keep their modes."""

    class Caching(Edlm):
        def forward(self, x, sigma):
            if not hasattr(self, "kept"):
                self.kept = torch.ones(1)
            return super().forward(x, sigma) + 0 * self.kept

    module = Caching(tiny, ar)
    module.train()
    module.noise.eval()
    with accelerate(module, semantics=semantics):
        sampled(module)
        assert module.training and module.backbone.training and not module.noise.training
    weight = module.backbone.head.weight
    (weight.sum() * module.kept).backward()
    assert weight.grad is not None


def test_fewer_calls_than_the_loop(tiny):
    module = Mdlm(tiny, batch_size=1, steps=200)
    sampled(module)
    own, module.entered = module.entered, 0
    for semantics in ("paper", "released"):
        with accelerate(module, semantics=semantics):
            module.entered = 0
            sampled(module)
            assert module.entered <= 4 <= own  # three positions and the end


def test_what_was_looked_for():
    with pytest.raises(ValueError, match="not one of MDLM, EDLM, ReMDM or DUO") as error:
        accelerate(nn.Linear(1, 1))
    for part in ("_sample", "mask_index", "noise", "config.sampling.steps"):
        assert f"no {part}" in str(error.value)
    assert "accelerate(module, only_categorical=True)" in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: delattr(m.config.model, "length"), "that of EDLM: no config.model.length"),
        (lambda m: setattr(m, "parameterization", "sedd"), "must be 'subs', got 'sedd'"),
        (lambda m: setattr(m, "block_size", 4), "it is block diffusion"),
        (lambda m: setattr(m.config, "ebm_backbone", "rwkv"), "one of ar, dit, hf_dit, got 'rwkv'"),
        (
            lambda m: setattr(m.config.sampling, "predictor", "analytic"),
            "predictor must be one of ddpm, .*got 'analytic'",
        ),
        (lambda m: setattr(m.config.sampling, "noise_removal", "half"), "noise_removal must be"),
        (lambda m: setattr(m.config.sampling, "is_size", 0), "num_candidates must be >= 1"),
    ],
)
def test_refused(tiny, ar, change, words):
    module = Edlm(tiny, ar)
    change(module)
    with pytest.raises(ValueError, match=words):
        accelerate(module)
    assert "_sample" not in vars(module)


def test_a_uniform_state_module_is_refused(tiny):
    module = Duo(tiny)
    del module.mask_index
    with pytest.raises(ValueError, match="that of DUO: no mask_index"):
        accelerate(module)


def test_samplers_of_remdm(tiny):
    with pytest.raises(ValueError, match=r"'remdm-cap', which masks .*semantics=\"released\""):
        accelerate(Remdm(tiny, sampler="remdm-cap"))
    with pytest.raises(ValueError, match=r"sampler must be one of mdlm, .*, got 'remdm'"):
        accelerate(Remdm(tiny, sampler="remdm"), semantics="released")
    with pytest.raises(ValueError, match="dfm must be False"):
        accelerate(Remdm(tiny, dfm=True), semantics="released")
    module = Remdm(tiny)
    with accelerate(module), pytest.raises(ValueError, match="masks tokens again"):
        module.config.sampling.sampler = "remdm-conf"
        sampled(module)


def test_arguments(tiny):
    with pytest.raises(ValueError, match=r"semantics must be .* or .*, got 'exact'"):
        accelerate(Mdlm(tiny), semantics="exact")
    for more in ({"energy": None}, {"config": {}}):
        with pytest.raises(ValueError, match="energy and config must be left out"):
            accelerate(Mdlm(tiny), semantics="released", **more)
    module = Duo(tiny)
    with accelerate(module):
        with pytest.raises(ValueError, match="labels must be left out"):
            module.generate_samples(2, labels=torch.zeros(2))
        with pytest.raises(TypeError, match="prompt"):
            module.generate_samples(2, prompt="a")
        with pytest.raises(TypeError, match="num_samples"):
            module.generate_samples()
        with pytest.raises(ValueError, match=r"eps must be in \(0, 1\), got 0"):
            module.generate_samples(2, eps=0)


def test_importing_it_needs_none_of_those_codes_and_no_room_above():
    code = "import edlm_engine.drop_in, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = run.stdout.split()
    assert "edlm_engine.drop_in.released" in loaded
    rooms = {".".join(name.split(".")[:2]) for name in loaded}
    above = {"edlm_engine.training", "edlm_engine.evaluation", "edlm_engine.cli"}
    assert not rooms & (above | {"lightning", "omegaconf", "hydra"})
