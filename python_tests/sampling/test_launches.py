"""How many kernels a step launches outside the models, counted on torch's meta device.

On a GPU the host takes some microseconds for each: small models would wait for it.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig
from edlm_engine.sampling.run import Run

LENGTH, VOCAB, HIDDEN = 1024, 64, 8
# Operations that are two kernels: rows of logits that are too few to fill a GPU are split.
KERNELS = {"edlm::sample_candidates": 2, "edlm::token_log_probs": 2}
NO_LAUNCH = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided"}


class Launches(TorchDispatchMode):
    """The operations of its body that launch a kernel, by name."""

    def __init__(self):
        super().__init__()
        self.names, self.counting = [], True

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        name, given = operation._schema.name, storages((args, kwargs))
        # Views launch nothing, and nor does what may be one (`reshape`, `to`) and is.
        works = operation._schema.is_mutable or not storages(results) <= given
        if self.counting and works and name not in NO_LAUNCH:
            self.names += [name] * KERNELS.get(name, 1)
        return results

    @contextmanager
    def paused(self):
        self.counting, before = False, self.counting
        yield
        self.counting = before


def storages(tree):
    tensors = [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and x.is_meta]
    return {x.untyped_storage()._cdata for x in tensors}


class Model:
    """A denoiser and a left-to-right model in one, whose own launches do not count."""

    device = torch.device("meta")
    mask_id, vocab_size, length = VOCAB - 1, VOCAB, LENGTH
    first_position, forbidden_id = 0, -1

    def __init__(self, launches):
        self.launches = launches
        self.head = torch.empty(VOCAB, HIDDEN, device="meta"), None

    def hidden(self, tokens, sigma=None):
        with self.launches.paused():
            return torch.empty(*tokens.shape, HIDDEN, device="meta")


def launches_of_steps(monkeypatch, energy, config, batch_size, **given):
    """For each step: whether it used the energy, how many draws it made, what it launched."""
    launches, taken = Launches(), []
    advance = Run.advance

    def counted(self, step, *given):
        launches.names = []
        with launches:
            advance(self, step, *given)
        taken.append((len(step.times) > 0, len(step.draws), launches.names))

    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(Run, "advance", counted)
    monkeypatch.setattr(Run, "result", lambda self, tokenizer: self)
    model = Model(launches)
    engine = Engine(model, energy and energy(model))
    engine.generate(batch_size, config=config, **given)
    return taken


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_step_without_the_energy(monkeypatch, batch_size):
    config = GenerationConfig(steps=32, num_candidates=8)
    taken = launches_of_steps(monkeypatch, None, config, batch_size)
    assert len(taken) == 32 and max(len(names) for _, _, names in taken) <= 8


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    ("energy", "most"),
    [
        (lambda model: lambda x0, xt, log_q, t: log_q, 8),
        (lambda model: ARResidualEnergy(model, max_tokens=1 << 20), 16),
        (lambda model: ARResidualEnergy(model, True, max_tokens=1 << 20), 16),
    ],
)
def test_a_step_with_the_energy(monkeypatch, energy, most, batch_size):
    config = GenerationConfig(steps=32, num_candidates=8, window=0.7)
    taken = launches_of_steps(monkeypatch, energy, config, batch_size)
    with_energy = [names for scored, _, names in taken if scored]
    assert taken[0][1] == batch_size * LENGTH and len(with_energy) > 20
    assert max(map(len, with_energy)) <= most
    assert all("edlm::reveal_chosen" in names for names in with_energy)
    assert max(len(names) for scored, _, names in taken if not scored) <= 8
