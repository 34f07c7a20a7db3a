"""Train the denoiser or the autoregressive model on plain text files, on one CPU or GPU.

A run folder holds config.json and model.safetensors (the averaged weights), tokenizer.json,
recipe.json (everything needed to repeat the run, and its results), log.jsonl, loss.png and
checkpoint/. Every file is complete or absent, and an interrupted run continues with `resume`.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from edlm_engine.checkpoints.files import TOKENIZER, read_json, write_json
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.training.config import (
    FREE_ON_RESUME,
    RunConfig,
    learning_rate,
    require,
    settings,
)
from edlm_engine.training.corpus import (
    evaluation_windows,
    read_text,
    split_held_out,
    text_files,
    token_stream,
    training_windows,
)
from edlm_engine.training.kinds import KINDS
from edlm_engine.training.objectives import (
    FINAL_DRAWS,
    LOSSES,
    held_out_contrast,
    held_out_loss,
    network_of,
)
from edlm_engine.training.run_folder import require_whole, sole_run
from edlm_engine.training.run_log import append_log, cut_log, plot_losses
from edlm_engine.training.signals import stop_signals

RECIPE, CHECKPOINTS = "recipe.json", "checkpoint"
LOG_EVERY = 10


@dataclass(frozen=True)
class Result:
    """How a run ended: `finished` is False if a signal stopped it. `unit` is of the loss."""

    step: int
    finished: bool
    held_out_loss: float | None
    unit: str


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    train: Tensor
    held_out: Tensor | None
    facts: dict[str, Any]


def train(kind: str, config: RunConfig) -> Result:
    """Train a "denoiser", "ar" model or "energy", or "adapt" a pretrained one, into `config.out`.

    A denoiser's loss is the bound of masked diffusion, an energy's that of telling data from what
    a denoiser draws. `KINDS` names each kind's configuration.

    Batches are a pure function of (seed, step): a run stopped by SIGINT or SIGTERM, or killed, and
    continued with `resume=True` gives the weights of a run never stopped (to the bit on a CPU with
    the same threads). Progress since the last checkpoint is lost only when killed outright.

    Raises:
        ValueError: a field out of range, text that is not UTF-8, a resumed run whose settings
            differ, or a damaged checkpoint.
        FileNotFoundError: no data, or nothing to resume.
        FileExistsError: `out` already holds a run and `resume` is False, or another one goes on
            in it.
        ImportError: accelerate or matplotlib is not installed.
        RuntimeError: the loss is not finite; the last checkpoint stays.
    """
    require("kind", kind in KINDS, " or ".join(KINDS), kind)
    wanted = KINDS[kind].config
    require("config", isinstance(config, wanted), f"a {wanted.__name__}", type(config).__name__)
    out = Path(config.out)
    with sole_run(out):
        latest = _checkpoint_to_resume(kind, config)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        corpus = load_corpus(kind, config)
        corpus.tokenizer.save(out / TOKENIZER)
        run = Run(kind, config, corpus)
        if latest is not None:
            run.restore(latest)
        # What a run wrote after its checkpoint, or without one, is written again.
        cut_log(out, run.step)
        with stop_signals() as stop:
            run.advance(stop)
        return run.finish()


def _checkpoint_to_resume(kind: str, config: RunConfig) -> Path | None:
    latest = max((Path(config.out) / CHECKPOINTS).glob("step-*"), default=None)
    if latest is None and config.resume:
        raise FileNotFoundError(f"nothing to resume: no checkpoint in {config.out}")
    if latest is not None and not config.resume:
        raise FileExistsError(f"{config.out} already holds a run: resume it, or choose another out")
    if latest is not None:
        recipe = read_json(latest / RECIPE)
        stored, now = recipe["config"] | {"kind": recipe["kind"]}, settings(config)
        _require_same(stored, now | {"kind": kind})
    return latest


def _require_same(stored: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"{name} {stored.get(name)!r} -> {value!r}"
        for name, value in now.items()
        if name not in FREE_ON_RESUME and value != stored.get(name)
    ]
    if changed:
        raise ValueError(f"a resumed run must keep its settings, changed: {', '.join(changed)}")


def load_corpus(kind: str, config: RunConfig) -> Corpus:
    """Read, split and tokenise the data."""
    files = text_files(config.data) if config.data else []
    train_files, held_out_files = split_held_out(files, config.held_out)
    texts = [read_text(file, config.unwrap) for file in train_files]
    held_out_texts = [read_text(file, config.unwrap) for file in held_out_files]
    tokenizer = KINDS[kind].tokenizer(config, texts)
    stream = KINDS[kind].stream(config, texts, tokenizer)
    held_out = token_stream(held_out_texts, tokenizer) if held_out_texts else None
    facts = {
        "training_files": len(train_files),
        "held_out_files": [file.name for file in held_out_files],
        "training_tokens": len(stream),
        "held_out_tokens": 0 if held_out is None else len(held_out),
        "held_out_characters": sum(map(len, held_out_texts)),
    }
    return Corpus(tokenizer, stream, held_out, facts)


def warmed_up_average(decay: float):
    """The update of `AveragedModel` by min(decay, (1 + n) / (10 + n)) after n steps."""

    def update(averaged: list[Tensor], current: list[Tensor], steps: Tensor | int) -> None:
        share = min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averaged, current, 1 - share)

    return torch.no_grad()(update)


class Run:
    """The state of one training run and the few things done with it."""

    def __init__(self, kind: str, config: RunConfig, corpus: Corpus) -> None:
        from accelerate import Accelerator

        # It tells of each file of a checkpoint, in the middle of the progress bar.
        logging.getLogger("accelerate").setLevel(logging.WARNING)
        self.kind, self.config, self.corpus = kind, config, corpus
        self.out = Path(config.out)
        self.step, self.seconds = 0, 0.0
        # Its mixed precision is one for the whole process: `autocast` below is each run's own.
        self.accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
        if self.accelerator.num_processes > 1:
            raise RuntimeError("training runs in one process, got several from the launcher")
        model: Any = KINDS[kind].build(config, corpus.tokenizer).to(self.accelerator.device)
        self.model = model.train()
        network = network_of(kind, model)
        self.network = torch.compile(network) if config.compile else network
        # Only what is trained is averaged and saved; a frozen base is read again.
        trained = {
            name.replace(".", "/"): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.trained = self.accelerator.prepare(torch.nn.ParameterDict(trained))
        self.average: Any = AveragedModel(self.trained, multi_avg_fn=warmed_up_average(config.ema))
        self.optimizers = [
            self.accelerator.prepare(optimizer)
            for optimizer in KINDS[kind].optimizers(model, config)
        ]
        self.accelerator.register_for_checkpointing(self.average)

    def autocast(self) -> torch.autocast:
        kind, wanted = self.accelerator.device.type, self.config.precision == "bf16"
        return torch.autocast(kind, torch.bfloat16, enabled=wanted)

    def advance(self, stop: list[int]) -> None:
        """Train to the last step, or until `stop` holds a signal; ends on a checkpoint."""
        config = self.config
        recent: list[float] = []
        with tqdm(total=config.steps, initial=self.step, desc=self.kind, mininterval=2.0) as bar:
            clock = time.monotonic()
            while self.step < config.steps and not stop:
                lr = learning_rate(config, self.step)
                recent.append(self.update(lr))
                bar.update()
                now = time.monotonic()
                self.seconds, clock = self.seconds + now - clock, now
                if self.step % LOG_EVERY == 0 or self.step == config.steps:
                    loss = sum(recent) / len(recent)
                    recent.clear()
                    bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}")
                    self.log(loss=loss, lr=lr)
                if self.step == config.steps:
                    break
                if self.step % config.eval_every == 0 and self.corpus.held_out is not None:
                    self.log(**self.evaluate(config.eval_windows, draws=1))
                if self.step % config.checkpoint_every == 0:
                    self.checkpoint()
        self.checkpoint()

    def update(self, lr: float) -> float:
        """One optimiser step; returns the loss."""
        config = self.config
        x0 = training_windows(
            self.corpus.train, config.length, config.batch_size, self.step, config.seed
        ).to(self.accelerator.device)
        # One generator per step: noise is addressed by (seed, step), as the windows are.
        random = torch.Generator().manual_seed((config.seed << 32) + self.step)
        KINDS[self.kind].before_step(self.model, config, self.step)
        with self.autocast():
            loss = LOSSES[self.kind](self.model, x0, random, self.network)
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(f"loss is {value} at step {self.step}: lower the lr")
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.trained.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        self.average.update_parameters(self.trained)
        self.step += 1
        return value

    def evaluate(self, windows: int, draws: int) -> dict[str, float]:
        """Held-out loss of the averaged weights, on the same windows and noise every time.

        A loss per token is also told per character of the text, which other tokenizers share.
        """
        assert self.corpus.held_out is not None  # asked for only where there is held-out text
        x0 = evaluation_windows(self.corpus.held_out, self.config.length, windows)
        x0, facts = x0.to(self.accelerator.device), self.corpus.facts
        with self.averaged_weights(), self.autocast():
            if self.kind == "energy":
                return held_out_contrast(self.model, x0, draws=draws)
            loss = held_out_loss(self.kind, self.model, x0, draws=draws)
        rate = facts["held_out_tokens"] / facts["held_out_characters"]
        return {"held_out_loss": loss, "held_out_per_character": loss * rate}

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model holds the averaged weights inside the body, its own again after it."""
        self._swap_weights()
        try:
            yield
        finally:
            self._swap_weights()

    def _swap_weights(self) -> None:
        for name, parameter in self.trained.items():
            averaged = self.average.module[name]
            parameter.data, averaged.data = averaged.data, parameter.data

    def log(self, **numbers: float) -> None:
        append_log(self.out, step=self.step, seconds=round(self.seconds, 1), **numbers)

    def checkpoint(self) -> None:
        """Save everything needed to continue, then the averaged model, recipe and plot."""
        folder = self.out / CHECKPOINTS
        temporary, final = folder / "unfinished", folder / f"step-{self.step:08d}"
        if not final.exists():
            shutil.rmtree(temporary, ignore_errors=True)
            self.accelerator.save_state(str(temporary), safe_serialization=False)
            write_json(temporary / RECIPE, self.recipe(None))
            os.replace(temporary, final)
        for old in folder.glob("step-*"):
            if old != final:
                shutil.rmtree(old)
        self.export()

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint."""
        recipe = read_json(checkpoint / RECIPE)
        _require_same(recipe, self.corpus.facts)
        require_whole(checkpoint)
        self.accelerator.load_state(str(checkpoint))
        self.step, self.seconds = recipe["steps_done"], recipe["training_seconds"]

    def export(self, held_out: dict[str, Any] | None = None) -> None:
        with self.averaged_weights():
            KINDS[self.kind].save(self.model, self.config, self.out)
        write_json(self.out / RECIPE, self.recipe(held_out))
        plot_losses(self.out, KINDS[self.kind].unit)

    def recipe(self, held_out: dict[str, Any] | None) -> dict[str, Any]:
        config = self.config
        return {
            "kind": self.kind,
            "steps_done": self.step,
            "finished": self.step >= config.steps,
            "held_out": held_out,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained_parameters": sum(p.numel() for p in self.trained.parameters()),
            "tokens_seen": self.step * config.batch_size * config.length,
            "training_seconds": round(self.seconds, 1),
            "processor": processor_name(self.accelerator.device),
            "torch": torch.__version__,
            **self.corpus.facts,
            "config": settings(config),
        }

    def finish(self) -> Result:
        """The final held-out loss, if the run is complete and there is held-out text."""
        finished, unit = self.step >= self.config.steps, KINDS[self.kind].unit
        if not finished or self.corpus.held_out is None:
            return Result(self.step, finished, None, unit)
        found = self.evaluate(self.config.final_windows, FINAL_DRAWS)
        self.log(**found)
        self.export(in_words(found, unit) | {"windows": self.config.final_windows})
        return Result(self.step, True, found["held_out_loss"], unit)


def in_words(found: dict[str, float], unit: str) -> dict[str, float]:
    """What was measured on held-out text as it stands in a recipe."""
    names = {"held_out_loss": unit.replace(" ", "_")}
    names |= {f"held_out_{name}": name for name in ("accuracy", "gap")}
    return {new: round(found[old], 4) for old, new in names.items() if old in found}


def processor_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    name = names[0].split(":", 1)[1].strip() if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} thread(s)"
