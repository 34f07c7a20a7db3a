import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from op_cases import P_VALUE, g_test

from edlm_engine.drop_in import accelerate, sample_categorical

SOURCE = """
import torch

def _sample_categorical(categorical_probs):
    return torch.full(categorical_probs.shape[:-1], -7)

class Diffusion:
    def sample(self, probs):
        return _sample_categorical(probs)
"""


@pytest.fixture
def family(monkeypatch):
    """A Python module laid out like the diffusion.py of MDLM and its relatives, and a subclass."""
    module = ModuleType("family_diffusion")
    exec(SOURCE, vars(module))
    derived = ModuleType("family_derived")
    derived.Diffusion = module.Diffusion
    exec("class Derived(Diffusion): pass", vars(derived))
    for python_module in (module, derived):
        monkeypatch.setitem(sys.modules, python_module.__name__, python_module)
    return SimpleNamespace(module=module, derived=derived)


PROBS = torch.tensor([[[0.1, 0.0, 0.9], [3.0, 3.0, 6.0]], [[0.0, 1.0, 0.0], [0.2, 0.5, 0.3]]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_frequencies_and_layout(dtype):
    torch.manual_seed(0)
    draws = sample_categorical(PROBS.to(dtype), num_samples=20_000)
    assert draws.shape == (40_000, 2) and draws.dtype == torch.int64
    # Sample j of row b is at j * B + b, as in probs.repeat(k, 1, 1).
    draws = draws.view(20_000, 2, 2)
    for b in range(2):
        for position in range(2):
            probs = PROBS[b, position].to(dtype).double()
            assert g_test(draws[:, b, position], probs / probs.sum()) > P_VALUE


def test_one_sample_has_the_shape_of_the_batch():
    assert sample_categorical(PROBS).shape == (2, 2)
    assert sample_categorical(PROBS[0]).shape == (2,)
    assert sample_categorical(PROBS[0, 0]).shape == ()
    assert sample_categorical(PROBS[0], num_samples=3).shape == (6,)
    assert sample_categorical(PROBS[0, 0], num_samples=3).shape == (3,)


def test_samples_are_different_draws():
    probs = torch.ones(4, 50, 1000)
    torch.manual_seed(0)
    draws = sample_categorical(probs, num_samples=2).view(2, 200)
    again = sample_categorical(probs).view(200)
    assert (draws[0] == draws[1]).float().mean() < 0.05
    assert (draws[0] == again).float().mean() < 0.05


def test_follows_the_global_generator():
    def draw():
        torch.manual_seed(5)
        return sample_categorical(PROBS.expand(2, 2, 3), num_samples=50), torch.rand(1)

    first, second = draw(), draw()
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    torch.manual_seed(6)
    assert not torch.equal(sample_categorical(PROBS, num_samples=50), first[0])


def test_follows_a_generator_of_its_own():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return [sample_categorical(PROBS, 50, generator=generator) for _ in range(2)]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = draw(5)
    assert torch.equal(torch.get_rng_state(), before)
    again, _ = draw(5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second) and not torch.equal(first, draw(6)[0])
    # A generator and the global one give one seed the same meaning.
    torch.manual_seed(5)
    assert torch.equal(sample_categorical(PROBS, 50), first)


def test_any_layout():
    probs = torch.rand(7, 5, 3).transpose(0, 2)
    assert probs.stride(-1) != 1
    torch.manual_seed(1)
    draws = sample_categorical(probs, 20)
    torch.manual_seed(1)
    assert torch.equal(draws, sample_categorical(probs.contiguous(), 20))
    column = torch.rand(3, 5).T
    assert sample_categorical(column).shape == (5,)


def test_float64_of_any_scale():
    for scale in (1e-300, 1e300):
        draws = sample_categorical(PROBS.double() * scale, num_samples=20_000).view(20_000, 2, 2)
        assert g_test(draws[:, 0, 1], PROBS[0, 1] / PROBS[0, 1].sum()) > P_VALUE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bad_probabilities(dtype):
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RuntimeError, match="row 1 holds NaN, a negative number or"):
            sample_categorical(torch.tensor([[0.5, 0.5], [bad, 1.0]], dtype=dtype))
    with pytest.raises(RuntimeError, match="row 0 allows nothing"):
        sample_categorical(torch.zeros(2, 3, dtype=dtype))
    with pytest.raises(ValueError, match="num_samples must be >= 1, got 0"):
        sample_categorical(PROBS, num_samples=0)


@pytest.mark.parametrize("kind", ["instance", "subclass", "python module"])
def test_accelerate_and_restore(family, kind):
    user = family.module.Diffusion() if kind != "subclass" else family.derived.Derived()
    target = family.module if kind == "python module" else user
    with accelerate(target, only_categorical=True) as handle:
        assert handle.engine is None and handle.generation is None
        assert (user.sample(PROBS) >= 0).all()
    assert (user.sample(PROBS) == -7).all()
    handle = accelerate(user, only_categorical=True)
    assert (user.sample(PROBS) >= 0).all()
    handle.restore()
    assert (user.sample(PROBS) == -7).all()


def test_accelerate_a_method(family):
    class Model:
        def _sample_categorical(self, probs):
            return torch.full(probs.shape[:-1], -7)

        def sample(self, probs):
            return self._sample_categorical(probs)

    model, other = Model(), Model()
    with accelerate(model, only_categorical=True):
        assert (model.sample(PROBS) >= 0).all() and (other.sample(PROBS) == -7).all()
    assert (model.sample(PROBS) == -7).all() and "_sample_categorical" not in vars(model)


def test_the_name_of_duo(family):
    del family.module._sample_categorical
    exec("def sample_categorical(probs): return -7", vars(family.module))
    with accelerate(family.module.Diffusion(), only_categorical=True):
        assert family.module.sample_categorical is sample_categorical
    assert family.module.sample_categorical(PROBS) == -7


def test_nothing_to_accelerate():
    with pytest.raises(ValueError, match="a function _sample_categorical or sample_categorical"):
        accelerate(torch.nn.Linear(1, 1), only_categorical=True)


@pytest.mark.parametrize(
    "more", [{"semantics": "released"}, {"energy": None}, {"config": {}}, {"generator": 1}]
)
def test_only_categorical_stands_alone(family, more):
    with pytest.raises(ValueError, match="only_categorical must be given alone"):
        accelerate(family.module, only_categorical=True, **more)
