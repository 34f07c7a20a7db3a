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
    *("tokenizer", "base", "start", "steps", "cooldown", "threads", "compile"),
    *("eval_every", "eval_windows", "final_windows", "checkpoint_every"),
}


@dataclass(frozen=True)
class RunConfig:
    """What every training run has. Paths are files or folders; `held_out` are file-name patterns.

    `steps`, `warmup`, `eval_every` and `checkpoint_every` count optimiser steps of `batch_size`
    windows of `length` tokens. The learning rate warms up linearly and falls in a cosine to 1 %; or
    with `cooldown`, a share of the steps, stays and falls linearly to 0 in that share at the end,
    so that `steps` may be set anew on resuming before it. `ema` is the decay per step of the
    averaged weights, which are the ones evaluated and saved; step n uses at most
    (1 + n) / (10 + n), so that a short run's average holds little of its random start.
    `threads=None` leaves torch's setting.
    """

    out: str
    data: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    unwrap: bool = True
    length: int = 128
    batch_size: int = 32
    steps: int = 10_000
    lr: float = 2e-3
    warmup: int = 100
    cooldown: float | None = None
    weight_decay: float = 0.01
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
        require("checkpoint_every", self.checkpoint_every >= 1, ">= 1", self.checkpoint_every)
        require("length", self.length >= 2, ">= 2", self.length)
        require("warmup", self.warmup >= 0, ">= 0", self.warmup)
        require("lr", self.lr > 0, "> 0", self.lr)
        cooldown = self.cooldown
        require("cooldown", cooldown is None or 0 < cooldown <= 1, "None or in (0, 1]", cooldown)
        require("weight_decay", self.weight_decay >= 0, ">= 0", self.weight_decay)
        # The noise of a step is seeded by seed * 2^32 + step, in 63 bits.
        require("seed", 0 <= self.seed < 2**31, "in [0, 2^31)", self.seed)
        require("ema", 0 <= self.ema < 1, "in [0, 1)", self.ema)
        require("precision", self.precision in ("bf16", "fp32"), "bf16 or fp32", self.precision)
        require("threads", self.threads is None or self.threads >= 1, ">= 1", self.threads)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A denoiser or an AR model of our own, from nothing. `RunConfig` has the common settings.

    `tokenizer` names an existing one, or is "characters": each character of the training files is a
    token, and nothing ends them. Without it a BPE of `vocab_size` tokens is trained on them.
    `optimizer="muon"` updates the matrices inside the blocks by Muon and all else by AdamW.
    """

    tokenizer: str | None = None
    vocab_size: int = 4096
    hidden_dim: int = 256
    blocks: int = 6
    heads: int = 4
    cond_dim: int = 32
    dropout: float = 0.0
    optimizer: str = "muon"

    def __post_init__(self) -> None:
        super().__post_init__()
        require("data", len(self.data) > 0, "at least one file or folder", self.data)
        require("optimizer", self.optimizer in ("adamw", "muon"), "adamw or muon", self.optimizer)


@dataclass(frozen=True)
class AdaptConfig(RunConfig):
    """A pretrained causal language model turned into a denoiser. See also `RunConfig`.

    lr: None is 2e-3 for low-rank weights and 3e-4 for full ones.
    base: "smollm2", the folder of a causal language model of transformers, or a GGUF file.
    weights: "low-rank" trains a change of `rank` in every linear layer, scaled by `alpha` / rank,
        and ships as small files beside the base; "full" trains all weights.
    mask: the token that stands for the mask, one that text never holds; None adds a token.
    bos: the token put in front, so that the first position is predicted too; None takes the
        base's own.
    anneal: for this many steps the share of later positions that a position may see grows from 0
        to 1; 0 shows them all at once.
    self_samples: train on so many documents of 4 * `length` tokens drawn from the base itself, not
        on the text of `data`: its own samples are the law that its energy aims at.
    start: the folder of an earlier adapted run, whose weights this one begins with.
    """

    base: str = "smollm2"
    lr: float | None = None  # type: ignore[assignment]  # a number once it is made
    weights: str = "low-rank"
    rank: int = 40
    alpha: float = 32.0
    mask: str | None = None
    bos: str | None = None
    anneal: int = 0
    self_samples: int = 0
    start: str | None = None
    batch_size: int = 12
    warmup: int = 20
    cooldown: float | None = 0.25
    weight_decay: float = 0.0
    ema: float = 0.99
    final_windows: int = 256
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        if self.lr is None:
            object.__setattr__(self, "lr", 2e-3 if self.weights == "low-rank" else 3e-4)
        super().__post_init__()
        text = len(self.data) > 0 or self.self_samples > 0
        require("data", text, "at least one file or folder, or self_samples given", self.data)
        weights = self.weights
        require("weights", weights in ("low-rank", "full"), "low-rank or full", weights)
        require("rank", self.rank >= 1, ">= 1", self.rank)
        require("alpha", self.alpha > 0, "> 0", self.alpha)
        require("anneal", self.anneal >= 0, ">= 0", self.anneal)
        require("self_samples", self.self_samples >= 0, ">= 0", self.self_samples)


@dataclass(frozen=True)
class EnergyTrainConfig(RunConfig):
    """An NCE energy, which learns to tell data from what a denoiser draws. See also `RunConfig`.

    denoiser: folder, file or hub id of the frozen denoiser; None is the bundled one. Its tokenizer
        is the energy's.
    negatives: candidates drawn from it for each window.
    redraws: further ones that keep the window but for a few positions, and are compared with it:
        what whole candidates no longer teach once all are told from text. 0 is the paper's loss.
    blocks: the energy starts with the denoiser's weights, of all its blocks or its first ones.
    hidden_dim: with a number, the energy has fresh weights in this width, and `blocks`, `heads` and
        `cond_dim` of its own.
    optimizer: as in `TrainConfig`.
    """

    denoiser: str | None = None
    negatives: int = 1
    redraws: int = 0
    hidden_dim: int | None = None
    blocks: int | None = None
    heads: int | None = None
    cond_dim: int = 32
    dropout: float = 0.0
    lr: float = 1e-3
    optimizer: str = "muon"

    def __post_init__(self) -> None:
        super().__post_init__()
        require("data", len(self.data) > 0, "at least one file or folder", self.data)
        require("optimizer", self.optimizer in ("adamw", "muon"), "adamw or muon", self.optimizer)
        require("negatives", self.negatives >= 1, ">= 1", self.negatives)
        require("redraws", self.redraws >= 0, ">= 0", self.redraws)
        for name in ("hidden_dim", "blocks", "heads"):
            value = getattr(self, name)
            require(name, value is None or value >= 1, "None or >= 1", value)
        fresh = self.hidden_dim is not None
        require("heads", fresh or self.heads is None, "given with hidden_dim only", self.heads)


def require(field: str, holds: bool, rule: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{field} must be {rule}, got {value!r}")


def settings(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON knows it, paths by their last part only."""
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    stored["data"] = [Path(path).name for path in config.data]
    for name in ("tokenizer", "base", "start", "denoiser"):
        if stored.get(name) is not None:
            stored[name] = Path(stored[name]).name
    del stored["out"], stored["resume"]
    return stored


def learning_rate(config: RunConfig, step: int) -> float:
    """The schedule that `RunConfig` describes, at a step counted from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.cooldown is None:
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
    return config.lr * min(1.0, (config.steps - step) / (config.cooldown * config.steps))
