"""What `edlm info` tells: versions, processor, backends and the bundled model."""

from __future__ import annotations

import importlib.metadata
import json
import platform

import torch

from edlm_engine import (
    _C,
    ops,  # noqa: F401 registers what `backends` looks for
)
from edlm_engine.checkpoints.files import BUNDLED
from edlm_engine.execution.devices import why_no_cuda
from edlm_engine.version import __version__

OPS = (
    "stream_keys",
    "sample_candidates",
    "sample_weights",
    "token_log_probs",
    "resample",
    "residual_draw",
    "reveal_steps",
    "place_candidates",
    "reveal_chosen",
    "sum_log_probs",
)
HEAD_OPS = ("head_sample_candidates", "head_token_log_probs")
PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "transformers", "accelerate", "cupy")


def collect() -> dict:
    """Everything `edlm info` prints, ready for JSON."""
    build = _C.build_info()
    return {
        "edlm_engine": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "compiler": build["compiler"],
        "cpu": {"instruction set": build["cpu_isa"], "threads": torch.get_num_threads()},
        "cuda": cuda_state(),
        "ops": {name: backends(name) for name in OPS}
        | dict.fromkeys(HEAD_OPS, f"torch's matrix product, then {backends(OPS[1])}"),
        "bundled model": bundled(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def backends(op: str) -> str:
    """The devices an op has kernels for."""
    found = [
        key.lower()
        for key in ("CPU", "CUDA")
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"edlm::{op}", key)
    ]
    return ", ".join(found)


def cuda_state() -> str:
    """Whether CUDA tensors can be used, and if not why."""
    compiled = "cuda" in backends(OPS[0])
    reason = why_no_cuda()
    if reason is None and compiled:
        return f"yes: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    reason = reason or "the engine was built without CUDA kernels (EDLM_CUDA=ON builds them)"
    return f"no: {reason}; CUDA kernels {'are' if compiled else 'are not'} compiled in"


def bundled() -> dict:
    recipe = BUNDLED / "recipe.json"
    return json.loads(recipe.read_text()) if recipe.is_file() else {"found": "no"}


def text(facts: dict, indent: int = 0) -> str:
    """Nested facts as indented lines."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{'  ' * indent}{name}:", text(value, indent + 1)]
        else:
            lines.append(f"{'  ' * indent}{name}: {value}")
    return "\n".join(lines)
