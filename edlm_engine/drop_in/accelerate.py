"""`accelerate`: the sampling loop of a module of the MDLM family, replaced and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edlm_engine.drop_in.categorical import categorical_owners, sample_categorical
from edlm_engine.drop_in.layouts import (
    Call,
    Layout,
    ModuleSchedule,
    layout_of,
    loop_arguments,
    read_call,
)
from edlm_engine.drop_in.models import ModuleEnergy, module_denoiser, module_energy
from edlm_engine.drop_in.released import ReleasedRun
from edlm_engine.drop_in.remasking import PLANNED, SAMPLERS
from edlm_engine.energies.protocol import Energy
from edlm_engine.energies.residual import ARResidualEnergy
from edlm_engine.engine import Engine
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.edlm_config import edlm_carry_over, edlm_fields, get, sampling_node
from edlm_engine.sampling.generation import Generation


def accelerate(
    module: Any,
    *,
    semantics: Literal["paper", "released"] = "paper",
    only_categorical: bool = False,
    energy: Energy | Callable[..., Tensor] | Literal["own"] | None = "own",
    config: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> Acceleration:
    """Make a module of MDLM, EDLM, ReMDM or DUO (masked) sample by this engine.

    Replaces the method that samples a batch, `_sample` or in DUO `generate_samples`, and so what
    calls it, `restore_model_and_sample`. The method takes the arguments that it took (num_steps,
    eps, num_samples) and returns what it returned, int64 [B, L] on the module's device. Denoiser,
    noise, mask and sampling configuration are the module's own and read at each call, so averaged
    weights, changed settings and further training are followed. The modules are recognised by their
    structure; none of their repositories is needed. Their semi-autoregressive loops stay.

    semantics: "paper", the law that this engine samples (exact ancestral steps, weights
        softmax(-E), each sequence on its own; what is left at the end is the most probable token
        with `noise_removal`, else a draw); or "released", that of the released loop with its
        faults (`edlm_engine.drop_in.released` says what is reproduced and what is not).
    only_categorical: replace no loop but only the function `_sample_categorical` (DUO:
        `sample_categorical`), on the object or in the Python modules that define its class, by
        `edlm_engine.drop_in.sample_categorical`. For modules of any structure, and Python modules.
    energy: of the paper's law: the module's "own" (EDLM), None, or another for its candidates.
    config: fields of `GenerationConfig` for the paper's law, above those of the module's own.
    generator: where each call's seed comes from, one 64-bit number; else torch's global generator.

    Returns the handle: `.engine`, `.generation` (of the last call), and `.restore()`, which undoes
    it; as a context manager it does so at the end.

    Raises ValueError for a module whose structure or settings are not known, saying what was
    looked for.
    """
    if only_categorical:
        given = semantics != "paper" or energy != "own" or (config, generator) != (None, None)
        if given:
            raise ValueError("only_categorical must be given alone: no loop is replaced")
        handle = Acceleration()
        for owner, name in categorical_owners(module):
            handle.replace(owner, name, sample_categorical)
        return handle
    if semantics not in ("paper", "released"):
        raise ValueError(f'semantics must be "paper" or "released", got {semantics!r}')
    if semantics == "released" and (energy, config) != ("own", None):
        raise ValueError("energy and config must be left out with the released semantics")
    layout = layout_of(module)
    _check_sampling(module, semantics)
    sampler = ModuleSampler(module, layout, semantics, energy, dict(config or {}), generator)
    handle = Acceleration(sampler)
    handle.replace(module, layout.loop, sampler.sample)
    return handle


class Acceleration:
    """What `accelerate` replaced. `engine` is None where only the categorical draws were."""

    def __init__(self, sampler: ModuleSampler | None = None):
        self._sampler = sampler
        self._before: list[tuple[Any, str, bool, Any]] = []

    @property
    def engine(self) -> Engine | None:
        return None if self._sampler is None else self._sampler.engine

    @property
    def generation(self) -> Generation | None:
        """What the last call drew by the paper's law, with its diagnostics."""
        return None if self._sampler is None else self._sampler.generation

    def replace(self, owner: Any, name: str, value: Any) -> None:
        self._before.append((owner, name, name in vars(owner), vars(owner).get(name)))
        setattr(owner, name, value)

    def restore(self) -> None:
        """Put back what was replaced; further calls do nothing."""
        while self._before:
            owner, name, was_there, value = self._before.pop()
            if was_there:
                setattr(owner, name, value)
            else:
                delattr(owner, name)

    close = restore

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


class ModuleSampler:
    """The loop that stands in for a module's own."""

    def __init__(
        self,
        module: Any,
        layout: Layout,
        semantics: str,
        energy: Any,
        overrides: dict[str, Any],
        generator: torch.Generator | None,
    ):
        self.module, self.semantics, self.overrides = module, semantics, overrides
        self.generator = generator
        self.generation: Generation | None = None
        self._arguments = loop_arguments(module, layout.loop)
        self._own_energy = isinstance(energy, str) and energy == "own"
        with torch.no_grad(), _evaluating(module):
            denoiser = module_denoiser(module)
            if self._own_energy:
                energy = module_energy(module) if layout.name == "EDLM" else None
        self._denoiser = denoiser
        self.engine = Engine(denoiser, energy)  # no tokenizer: each call would decode its tokens
        self._config()  # so that a wrong configuration shows at once

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the module's own loop returns."""
        call = read_call(self.module, self._arguments, args, kwargs)
        _check_sampling(self.module, self.semantics)
        energy = self.engine.energy
        if self._own_energy and isinstance(energy, ARResidualEnergy):
            energy.carry_over = edlm_carry_over(self.module.config)
        device = None if self.generator is None else self.generator.device
        seed = torch.randint(-(2**63), 2**63 - 1, (), generator=self.generator, device=device)
        with torch.no_grad():
            if self.semantics == "released":
                return self._released(call, int(seed))
            self.engine.schedule = ModuleSchedule(self.module, call.eps)  # type: ignore[assignment]
            self.generation = self.engine.generate(
                call.batch_size, config=self._config(call.steps), seed=int(seed)
            )
            return self.generation.sequences

    def _released(self, call: Call, seed: int) -> Tensor:
        energy = self.engine.energy
        if isinstance(energy, ModuleEnergy) and not energy.residual:
            energy = ModuleEnergy(self.module, residual=False, time_as_sigma=True)
        return ReleasedRun(self.module, self._denoiser, energy, call, seed).result()

    def _config(self, steps: int | None = None) -> GenerationConfig:
        asked = {} if steps is None else {"steps": steps}
        return GenerationConfig.from_dict(edlm_fields(self.module.config) | self.overrides | asked)


def _check_sampling(module: Any, semantics: str) -> None:
    """ValueError for a sampler of the module's that the semantics does not have."""
    node = sampling_node(module.config)
    edlm_fields(module.config)
    sampler = get(node, "sampler")
    if get(node, "dfm", False):
        raise ValueError("config.sampling.dfm must be False: that corrector is not known here")
    if sampler is not None and sampler not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        raise ValueError(f"config.sampling.sampler must be one of {known}, got {sampler!r}")
    if semantics == "paper" and sampler not in PLANNED:
        raise ValueError(
            f"config.sampling.sampler is {sampler!r}, which masks tokens again: the paper's law "
            'does not. Use semantics="released" or sampler "mdlm"'
        )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Within the body no part of the module trains; then each is as it was."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
