"""The loop never waits for the device: it runs on one whose data nobody can read.

On torch's meta device, whatever needs a value raises: `item`, `nonzero`, masks as indices, copies
to the host. What CUDA would also wait for, host tensors mixed with the device's and copies of
memory that is not pinned, `Uploads` looks for.
"""

import pytest
import torch
from graph_models import LENGTH, denoiser, scorer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edlm_engine import ARResidualEnergy, CallableDenoiser, Engine, GenerationConfig
from edlm_engine.sampling import course, steps
from edlm_engine.sampling.run import Run
from edlm_engine.sampling.steps import steps_of

pytestmark = pytest.mark.usefixtures("single_thread")
PROMPT = [4] * 9


class Uploads(TorchDispatchMode):
    """Counts copies from the host; refuses those that wait, and operations on both sides."""

    def __init__(self, pinned):
        super().__init__()
        self.pinned, self.count = pinned, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        results = operation(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        host = [x for x in given if x.device.type == "cpu"]
        made = [x for x in tree_leaves(results) if isinstance(x, torch.Tensor)]
        if host and any(x.is_meta for x in (*given, *made)):
            if len(given) > 1 or not operation.__name__.startswith(("_to_copy", "to.")):
                raise RuntimeError(f"{operation} on tensors of the host and the device")
            if not (kwargs.get("non_blocking") and host[0].data_ptr() in self.pinned):
                raise RuntimeError(f"{operation} waits: the host's memory is not pinned")
            self.count += 1
        return results


@pytest.fixture
def uploads(monkeypatch):
    """Active within each generation, the last part of which reads the results."""
    pinned = []  # the tensors too, so that no other takes their address
    uploads = Uploads(set())

    def pin(tensor):
        pinned.append(tensor.clone())
        uploads.pinned.add(pinned[-1].data_ptr())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    advance, start = Run.advance, Run.__init__

    def watched(method):
        def run(self, *given):
            with uploads:
                return method(self, *given)

        return run

    def watched_steps(*given, **options):
        steps = steps_of(*given, **options)
        while True:
            with uploads:
                iteration = next(steps, None)
            if iteration is None:
                return
            yield iteration

    monkeypatch.setattr(course, "steps_of", watched_steps)
    monkeypatch.setattr(Run, "__init__", watched(start))
    monkeypatch.setattr(Run, "advance", watched(advance))
    monkeypatch.setattr(Run, "result", lambda self, tokenizer: self)
    return uploads


@pytest.mark.parametrize("energy", [None, "ar", "coar"])
@pytest.mark.parametrize(
    ("folded", "options", "prompt"),
    [
        (False, {}, None),
        (True, {"window": (0.2, 0.7), "final": "argmax", "top_p": 0.9}, None),
        (False, {"steps": None}, PROMPT),
        (True, {"batch_invariant": True, "temperature": 0.8}, PROMPT),
    ],
)
def test_a_generation_does_not_wait(uploads, monkeypatch, folded, energy, options, prompt):
    model = denoiser(time_conditioning=not folded, folded=folded).to("meta")
    ar = scorer().to("meta")
    if energy is not None:
        energy = ARResidualEnergy(ar, energy == "coar", max_tokens=5 * LENGTH)
    config = GenerationConfig(**{"steps": 6, "num_candidates": 3, **options})
    monkeypatch.setattr(steps, "BLOCK_POSITIONS", 2 * 3 * LENGTH)  # two iterations
    calls = []
    for name in ("hidden", "hidden_after_prefix"):
        method = getattr(ar, name)
        monkeypatch.setattr(ar, name, lambda *x, m=method, n=name: (calls.append(n), m(*x))[1])
    run = Engine(model, energy).generate(3, config=config, prompt=prompt)
    assert run.xt.is_meta and run.nfe.max() >= 5
    # One for all that the steps of a block need, one for the first xt and the seeds, and with
    # carry-over one for the scored positions of each model call.
    blocks = -(-run.nfe.max() // 2)
    carry_over = energy is not None and energy.carry_over
    assert uploads.count == blocks + 1 + (len(calls) if carry_over else 0)
    if energy is not None and prompt is not None:
        assert set(calls) == {"hidden_after_prefix"}


def some_energy(what):
    return lambda x0, xt, log_q, t: log_q + what(x0)


@pytest.mark.parametrize(
    "what",
    [
        lambda x0: x0.max().item(),
        lambda x0: x0.nonzero().sum(),
        lambda x0: x0[x0 > 3].sum(),
        lambda x0: x0.cpu().sum(),
        lambda x0: int(x0.any()),
        lambda x0: len(x0.unique()),
        lambda x0: float(torch.equal(x0, x0)),
        lambda x0: x0.repeat_interleave(x0[:, 0, 0], 0).sum(),
        lambda x0: x0.sum(2) + torch.arange(3),
        lambda x0: torch.tensor([0.1, 0.2, 0.3]).to(x0.device),
        lambda x0: torch.zeros(1, 3)[:, x0[0, 0] - x0[0, 0]].sum(),
        lambda x0: x0[:, :, torch.arange(2)].sum(2),
    ],
)
def test_whatever_waits_is_seen(uploads, what):
    """A loop with any of these in it would not get through the test above."""
    model = denoiser(folded=True).to("meta")
    config = GenerationConfig(steps=4, num_candidates=3)
    Engine(model, some_energy(lambda x0: x0.sum(2))).generate(2, config=config)
    with pytest.raises((RuntimeError, NotImplementedError)):
        Engine(model, some_energy(what)).generate(2, config=config)


def test_an_energy_that_is_not_told_the_masked_positions_waits(uploads):
    model, energy = denoiser(folded=True).to("meta"), ARResidualEnergy(scorer().to("meta"), True)
    config = GenerationConfig(steps=4, num_candidates=3)
    Engine(model, lambda x0, xt, log_q, t, masked: energy(x0, xt, log_q, t, masked)).generate(
        2, config=config
    )
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        Engine(model, lambda *given: energy(*given)).generate(2, config=config)


def test_a_denoiser_without_a_head(uploads):
    model = denoiser(folded=True).to("meta")
    sizes = {"mask_id": model.mask_id, "vocab_size": model.vocab_size, "length": LENGTH}
    plain = CallableDenoiser(model.logits, **sizes, device="meta")
    run = Engine(plain).generate(3, config=GenerationConfig(steps=4))
    assert uploads.count == 2 and run.nfe.max() > 2
