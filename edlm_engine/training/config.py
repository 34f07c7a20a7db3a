"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a continued run may change without becoming another run.
FREE_ON_RESUME = {
    *("tokenizer", "steps", "threads", "compile"),
    *("eval_every", "eval_windows", "final_windows", "checkpoint_every"),
}


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Paths are files or folders; `held_out` are file-name patterns.

    `steps`, `warmup`, `eval_every` and `checkpoint_every` count optimiser steps of `batch_size`
    windows of `length` tokens. `tokenizer` names an existing one; without it a BPE of
    `vocab_size` tokens is trained on the training files. `optimizer="muon"` updates the matrices
    inside the blocks by Muon and all else by AdamW. `ema` is the decay per step of the averaged
    weights, which are the ones evaluated and saved. `threads=None` leaves torch's setting.
    """

    data: tuple[str, ...]
    out: str
    held_out: tuple[str, ...] = ()
    unwrap: bool = True
    tokenizer: str | None = None
    vocab_size: int = 4096
    length: int = 128
    hidden_dim: int = 256
    blocks: int = 6
    heads: int = 4
    cond_dim: int = 32
    dropout: float = 0.0
    batch_size: int = 32
    steps: int = 10_000
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    optimizer: str = "muon"
    seed: int = 0
    ema: float = 0.999
    eval_every: int = 500
    eval_windows: int = 256
    final_windows: int = 2048
    checkpoint_every: int = 500
    resume: bool = False
    threads: int | None = None
    precision: str = "bf16"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "eval_every", "eval_windows", "final_windows"):
            require(name, getattr(self, name) >= 1, ">= 1", getattr(self, name))
        require("data", len(self.data) > 0, "at least one file or folder", self.data)
        require("checkpoint_every", self.checkpoint_every >= 1, ">= 1", self.checkpoint_every)
        require("length", self.length >= 2, ">= 2", self.length)
        require("warmup", self.warmup >= 0, ">= 0", self.warmup)
        require("lr", self.lr > 0, "> 0", self.lr)
        require("weight_decay", self.weight_decay >= 0, ">= 0", self.weight_decay)
        # The noise of a step is seeded by seed * 2^32 + step, in 63 bits.
        require("seed", 0 <= self.seed < 2**31, "in [0, 2^31)", self.seed)
        require("ema", 0 <= self.ema < 1, "in [0, 1)", self.ema)
        require("optimizer", self.optimizer in ("adamw", "muon"), "adamw or muon", self.optimizer)
        require("precision", self.precision in ("bf16", "fp32"), "bf16 or fp32", self.precision)
        require("threads", self.threads is None or self.threads >= 1, ">= 1", self.threads)


def require(field: str, holds: bool, rule: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{field} must be {rule}, got {value!r}")


def settings(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON knows it, paths by their last part only."""
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    stored["data"] = [Path(path).name for path in config.data]
    stored["tokenizer"] = config.tokenizer and Path(config.tokenizer).name
    del stored["out"], stored["resume"]
    return stored


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine to 1 % at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
