"""Sampling step by step: sequences that come and go at any step, each as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from numbers import Integral
from threading import local
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.execution import graphs
from edlm_engine.sampling.canvas import sequence_seeds
from edlm_engine.sampling.cohort import Cohort, Progress, Waiting
from edlm_engine.sampling.config import GenerationConfig, as_config
from edlm_engine.sampling.generation import Generation
from edlm_engine.sampling.request import Request, Sampler, as_request, first_xt
from edlm_engine.sampling.run import evaluate


class SessionFull(RuntimeError):
    """A request does not fit beside those that run: add it again when some have finished."""


class Finished(NamedTuple):
    """What became of a request: a generation of one sequence, or the error that ended it."""

    handle: int
    generation: Generation | None
    error: Exception | None


class Session:
    """Sequences in one running batch, made by `Engine.session`.

    Each request has its own configuration, seed and known tokens; it may join before any step, and
    leaves when its plan is done. Its sequence is that of `Engine.generate` alone, as far as the
    models' own arithmetic does not depend on the batch (`GenerationConfig.batch_invariant`).
    Requests of one length share the calls of the denoiser, those that also agree in everything but
    seed, known tokens, steps and window share those of the energy.

    A request whose logits or weights are bad, or whose models raise, ends alone, with its error in
    `finished`. Not for use by several threads at a time.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        max_sequences: int | None = None,
        max_tokens: int | None = None,
    ):
        for name, value in (("max_sequences", max_sequences), ("max_tokens", max_tokens)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise TypeError(f"{name} must be of type int, got {value!r}")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.sampler = sampler
        self.max_sequences, self.max_tokens = max_sequences, max_tokens
        self._cohorts: dict[GenerationConfig, Cohort] = {}
        self._waiting: list[Waiting] = []
        self._left: list[Cohort] = []  # ended, taken out, not reported
        self._errors: dict[int, Exception] = {}
        self._next_handle = count()
        self._workspace = local()
        self._depth = 0

    def __len__(self) -> int:
        """How many sequences wait or run."""
        return sum(count for count, _ in self._counts())

    @property
    def tokens(self) -> int:
        """The length of all sequences that wait or run, summed."""
        return sum(count * length for count, length in self._counts())

    def add(self, request: Request | Mapping[str, Any]) -> int:
        """A sequence that takes its first step with the next `step`; its handle.

        Raises what `Engine.generate` raises for arguments that do not fit, and SessionFull if there
        is no room beside those that wait or run; then nothing has changed.
        """
        request = as_request(request)
        config = as_config(request.config)
        xt = first_xt(self.sampler, 1, config, request.prompt, request.suffix, request.canvas)
        self._require_budget(xt.shape[1])
        (handle,) = self.start(config, xt, sequence_seeds(request.seed, 1))
        return handle

    def start(self, config: GenerationConfig, xt: Tensor, seeds: Tensor) -> list[int]:
        """Add sequences of one configuration: first tokens [B, L], seeds [B]; their handles."""
        handles = [next(self._next_handle) for _ in range(len(xt))]
        config = replace(config, length=xt.shape[1], new_tokens=None)
        self._waiting.append(Waiting(config, xt, seeds, handles))
        return handles

    def step(self) -> int:
        """One reverse step of every sequence, each its own next one; how many took one."""
        with self.turn():
            self._settle()
            cohorts = [cohort for cohort in self._cohorts.values() if cohort.parts()]
            taken = self._take_together(cohorts) if len(cohorts) > 1 else 0
            for cohort in cohorts:
                taken += self._take(cohort)
            return taken

    def cancel(self, handle: int) -> None:
        """Take a sequence out at once, its rows and budget with it; it is not reported.

        Raises KeyError for a handle that does not wait or run.
        """
        for waiting in self._waiting:
            if handle in waiting.handles:
                self._waiting.remove(waiting)
                if len(waiting.handles) > 1:
                    self._waiting.append(waiting.without(handle))
                return
        for cohort in self._cohorts.values():
            if handle in cohort.handles and not cohort.ended()[cohort.handles.index(handle)]:
                self._remove({handle})
                return
        raise KeyError(f"no sequence with handle {handle} waits or runs")

    def finished(self) -> list[Finished]:
        """The requests that ended since the last call, in the order of their handles.

        Waits for the device if there are any.
        """
        with self.turn():
            self._settle()
            results = [Finished(handle, None, error) for handle, error in self._errors.items()]
            self._errors.clear()
            for cohort in (*self._cohorts.values(), *self._left):
                for row in np.flatnonzero(cohort.ended()):
                    handle = cohort.handles[row]
                    if handle not in cohort.reported:
                        cohort.reported.add(handle)
                        results.append(self._result(cohort, handle, row))
            self._left.clear()
            for key, cohort in list(self._cohorts.items()):
                if len(cohort.reported) == len(cohort.handles):
                    del self._cohorts[key]
            return sorted(results, key=lambda result: result.handle)

    def xt(self, handle: int) -> Tensor:
        """A copy of a running sequence's tokens [L] int64, the mask where hidden."""
        return self.progress(handle).xt

    def progress(self, handle: int) -> Progress:
        """Where a sequence is. KeyError if it failed, was reported, or never was."""
        with self.turn():
            self._settle()
            for cohort in (*self._cohorts.values(), *self._left):
                if handle in cohort.handles:
                    return cohort.progress(cohort.handles.index(handle))
        raise KeyError(f"no sequence with handle {handle} runs")

    def only_cohort(self) -> Cohort:
        """The sequences of a session in which all are alike and nothing is to join."""
        self._settle()
        (cohort,) = self._cohorts.values()
        cohort.course.closed = True
        return cohort

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within the body the session has the graphs, the modes and the workspace of its steps.

        Steps enter it by themselves; around a loop of them it costs once.
        """
        if self._depth:
            yield
            return
        models = (self.sampler.denoiser, self.sampler.energy)
        needs_grad = any(getattr(model, "needs_grad", False) for model in models)
        with ExitStack() as stack:
            stack.enter_context(graphs.using(self.sampler.model_graphs()))
            stack.enter_context(torch.inference_mode(not needs_grad))
            stack.enter_context(torch.no_grad())
            stack.enter_context(ops.one_head_workspace(self._workspace))
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _counts(self) -> Iterator[tuple[int, int]]:
        """How many sequences of which length wait or run."""
        for waiting in self._waiting:
            yield waiting.xt.shape[0], waiting.xt.shape[1]
        for cohort in self._cohorts.values():
            yield int((~cohort.ended()).sum()), cohort.run.xt.shape[1]

    def _require_budget(self, length: int) -> None:
        if self.max_sequences is not None and len(self) >= self.max_sequences:
            raise SessionFull(f"max_sequences {self.max_sequences} are in the session already")
        if self.max_tokens is None:
            return
        if length > self.max_tokens:
            raise ValueError(f"length must be <= max_tokens {self.max_tokens}, got {length}")
        if self.tokens + length > self.max_tokens:
            raise SessionFull(
                f"max_tokens is {self.max_tokens} and {self.tokens} are in the session: "
                f"no room for {length}"
            )

    def _settle(self) -> None:
        """Let those that wait join the sequences like them, and let those that ended leave."""
        if not self._waiting:
            return
        alike: dict[GenerationConfig, list[Waiting]] = {}
        for new in self._waiting:
            alike.setdefault(new.config, []).append(new)
        self._waiting = []
        for new in map(Waiting.of, alike.values()):
            # Steps, window, seed and tokens are a row's own; all else is the cohort's.
            key = replace(new.config, steps=1, window=1.0)
            cohort = new.planned(self.sampler)
            if key in self._cohorts:
                self._without_ended(key)
            if key in self._cohorts:
                cohort = self._cohorts[key].joined(cohort)
            self._cohorts[key] = cohort

    def _without_ended(self, key: GenerationConfig) -> None:
        """Take what has ended out of a cohort that is about to change."""
        cohort = self._cohorts.pop(key)
        ended = cohort.ended()
        unreported = [
            row for row in np.flatnonzero(ended) if cohort.handles[row] not in cohort.reported
        ]
        if unreported:
            self._left.append(cohort.kept(np.array(unreported)))
        if not ended.all():
            self._cohorts[key] = cohort.kept(np.flatnonzero(~ended))

    def _remove(self, handles: set[int]) -> None:
        """Take sequences out of their cohorts."""
        with self.turn():
            for key, cohort in list(self._cohorts.items()):
                stay = [row for row, h in enumerate(cohort.handles) if h not in handles]
                if not stay:
                    del self._cohorts[key]
                elif len(stay) < len(cohort.handles):
                    self._cohorts[key] = cohort.kept(np.array(stay))

    def _take_together(self, cohorts: list[Cohort]) -> int:
        """The steps of cohorts of one length by a common call of the denoiser; how many took one.

        What is left for each alone stays in `cohorts`.
        """
        by_length: dict[int | None, list[Cohort]] = {}
        for cohort in cohorts:
            config = cohort.run.config
            shares = config.guidance == 0 and not cohort.run.correction.PARTICLES
            if shares and not config.batch_invariant:
                by_length.setdefault(config.length, []).append(cohort)
        taken = 0
        for alike in by_length.values():
            if len(alike) == 1:
                continue
            inputs = [cohort.run.inputs(cohort.parts()[0]) for cohort in alike]
            xt, sigma = (torch.cat(parts) for parts in zip(*inputs, strict=True))
            try:
                values = evaluate(self.sampler.denoiser, xt, sigma)
            except Exception:
                continue  # each calls it for itself then, and ends alone if it raises again
            sizes = [len(xt) for xt, _ in inputs]
            for cohort, some in zip(alike, values.split(sizes), strict=True):
                taken += self._take(cohort, some)
                cohorts.remove(cohort)
        return taken

    def _take(self, cohort: Cohort, values: Tensor | None = None) -> int:
        """An iteration of a cohort; how many sequences took their step."""
        taken, errors = cohort.take(values, isolated=True)
        if errors:
            self._errors.update(errors)
            self._remove(set(errors))
        return taken

    def _result(self, cohort: Cohort, handle: int, row: np.intp) -> Finished:
        try:
            generation = cohort.run.rows(np.array([row])).result(self.sampler.tokenizer)
        except RuntimeError as error:  # the device tells of bad numbers only now
            return Finished(handle, None, error)
        return Finished(handle, generation, None)
