"""The modules of the MDLM family: how each is told from the others, and where its parts are."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edlm_engine.sampling.edlm_config import get

# The names of a batch size among the arguments of a loop.
BATCH_SIZES = ("num_samples", "batch_size_per_gpu", "n_samples", "batch_size")


@dataclass(frozen=True)
class Layout:
    """A family of modules. `marks` tell it from those after it; `parts` are what sampling needs."""

    name: str
    loop: str  # the method that samples a batch
    marks: tuple[str, ...]
    parts: tuple[str, ...]

    def missing(self, module: object) -> list[str]:
        return [part for part in (self.loop, *self.parts) if not _has(module, part)]


@dataclass(frozen=True)
class Call:
    """What one call of a module's loop asks for."""

    batch_size: int
    steps: int | None  # None: as configured
    eps: float


_PARTS = (
    "forward",
    "mask_index",
    "vocab_size",
    "noise",
    "time_conditioning",
    "config.sampling.steps",
    "config.model.length",
)
_MDLM = (*_PARTS, "config.loader.eval_batch_size")
LAYOUTS = (
    Layout("EDLM", "_sample", ("ebm_forward",), (*_MDLM, "ebm", "config.ebm_backbone")),
    Layout("DUO", "generate_samples", ("generate_samples", "_sigma_from_alphat"), _PARTS),
    Layout("ReMDM", "_sample", ("_sample", "config.sampling.sampler"), _MDLM),
    Layout("MDLM", "_sample", ("_sample",), _MDLM),
)


def layout_of(module: object) -> Layout:
    """The first layout whose marks and parts the module has.

    Raises ValueError if there is none, saying what was looked for, and for a module that is no
    masked diffusion over whole sequences.
    """
    found = next((x for x in LAYOUTS if all(_has(module, mark) for mark in x.marks)), None)
    missing = LAYOUTS[-1].missing(module) if found is None else found.missing(module)
    if found is None or missing:
        looked = "one of MDLM, EDLM, ReMDM or DUO (_sample or generate_samples)"
        looked = looked if found is None else f"that of {found.name}"
        raise _refused(module, f"its structure is not {looked}: no {', no '.join(missing)}")
    kind = getattr(module, "parameterization", "subs")
    if kind != "subs":
        raise _refused(module, f"parameterization must be 'subs', got {kind!r}")
    if hasattr(module, "block_size"):
        raise _refused(
            module, "it is block diffusion (it has block_size), not over whole sequences"
        )
    return found


def _refused(module: object, why: str) -> ValueError:
    return ValueError(
        f"cannot replace the sampling loop of {type(module).__name__}: {why}. To replace only its "
        "categorical draws, call accelerate(module, only_categorical=True)"
    )


def _has(module: object, path: str) -> bool:
    value: Any = module
    for name in path.split("."):
        value = get(value, name)
        if value is None:
            return False
    return True


def loop_arguments(module: object, loop: str) -> inspect.Signature:
    """What a module's loop takes, as its class has it: the object's own may be replaced already."""
    function = getattr(type(module), loop, None)
    if function is None:
        return inspect.signature(getattr(module, loop))
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def read_call(
    module: Any, arguments: inspect.Signature, args: tuple, kwargs: dict[str, Any]
) -> Call:
    """The arguments of a module's own loop.

    Raises TypeError for arguments that the loop does not take, and ValueError for those that are
    not known here (class labels and the like).
    """
    bound = arguments.bind(*args, **kwargs).arguments
    given = {name: value for name, value in bound.items() if value is not None}
    sizes = [given.pop(name) for name in BATCH_SIZES if name in given]
    call = Call(
        batch_size=sizes[0] if sizes else module.config.loader.eval_batch_size,
        steps=given.pop("num_steps", None),
        eps=given.pop("eps", 1e-5),
    )
    if given:
        raise ValueError(
            f"{', '.join(given)} must be left out: the accelerated loop takes num_samples, "
            "num_steps and eps"
        )
    return call


class ModuleSchedule:
    """A module's own noise, as a schedule of the engine: the time ends at `eps`.

    Every loop of the family starts from nothing but masks and keeps a mask from time t to s with
    probability m(s) / m(t), where m = 1 - exp(-sigma); so mask_prob(t) = m(t) / m(1). For the
    log-linear noise that is t.
    """

    def __init__(self, module: Any, eps: float):
        if not 0 < eps < 1:
            raise ValueError(f"eps must be in (0, 1), got {eps}")
        self.module, self.eps = module, eps

    def times(self, steps: int) -> Tensor:
        return torch.linspace(1, self.eps, steps + 1, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        noise = self.module.noise
        state = [*noise.parameters(), *noise.buffers()] if hasattr(noise, "parameters") else []
        given = t.to(state[0].device if state else "cpu", torch.float64)
        first, second = noise(given)
        # DUO's noise gives the derivative of alpha and alpha; all others sigma and its rate.
        duo = hasattr(self.module, "_sigma_from_alphat")
        return (-torch.log(second) if duo else first).to(t.device, torch.float64)

    def mask_prob(self, t: Tensor) -> Tensor:
        whole = torch.expm1(-self.sigma(torch.ones((), dtype=torch.float64, device=t.device)))
        return torch.expm1(-self.sigma(t)) / whole

    def time_of(self, mask_prob: Tensor) -> Tensor:
        """By bisection: a noise has no inverse of its own that all modules agree on."""
        low = torch.zeros_like(mask_prob)
        high = torch.ones_like(mask_prob)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.mask_prob(middle) < mask_prob
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high
