"""Sequences of a session that are sampled alike, and where they are in their plans."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edlm_engine.execution.threads import one_thread
from edlm_engine.sampling.adaptive import Adaptive
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.course import Course, Planned
from edlm_engine.sampling.ending import end_at_eos
from edlm_engine.sampling.orders import ADAPTIVE
from edlm_engine.sampling.plan import plan_reveals
from edlm_engine.sampling.request import Sampler
from edlm_engine.sampling.run import Run
from edlm_engine.sampling.steps import Step

AS_IT_IS = nullcontext()


class Progress(NamedTuple):
    """Where a sequence is; tensors are on the denoiser's device."""

    xt: Tensor  # [L] int64, the mask where hidden
    known: Tensor  # [L] bool: given by the user
    steps: int  # taken
    most_steps: int  # how many it takes at most
    nfe: int  # denoiser evaluations so far
    ess: Tensor  # [] float32: of the last energy step, NaN without one
    log_q: Tensor | None = None  # [L] float32: with `record`, as in it


@dataclass(eq=False)
class Cohort:
    """A run, the course of its steps, and the handles of its sequences, in the order of their rows.

    Sequences differ in seed, known tokens, steps and window, and have the rest in common. Those
    that have ended stay where they are, untouched, until the cohort is changed.
    """

    run: Run
    course: Course
    handles: list[int]
    reported: set[int] = field(default_factory=set)
    _parts: deque[Step] = field(default_factory=deque)

    def ended(self) -> np.ndarray:
        """[B] bool: which sequences have taken all their steps."""
        return self.course.ended(self.run)

    def parts(self) -> deque[Step]:
        """What is left of the present iteration, made if there is none: to be taken one by one.

        Empty if all sequences have ended.
        """
        if not self._parts:
            self._parts.extend(self.course.next(self.run))
        return self._parts

    def take(
        self, values: Tensor | None = None, *, isolated: bool = False
    ) -> tuple[int, dict[int, Exception]]:
        """The present iteration: how many sequences took their step, and why others could not.

        values: of the denoiser, if it was called already. isolated: what a sequence raises is its
        own error, by its handle; else it is raised.
        """
        taken, parts = 0, self.parts()
        errors: dict[int, Exception] = {}
        alone = self.run.config.batch_invariant and torch.get_num_threads() > 1
        with one_thread() if alone else AS_IT_IS:
            while parts:
                if isolated:
                    taken += self._advance(parts[0], values, errors)
                else:
                    self.run.advance(parts[0], values)
                    taken += len(parts[0].rows_on_host)
                parts.popleft()
        self.course.done(self.run)
        eos_id = self.run.config.eos_id
        if eos_id is not None:
            self.course.end(self.run, end_at_eos(self.run, eos_id))
        return taken, errors

    def _advance(self, part: Step, values: Tensor | None, errors: dict[int, Exception]) -> int:
        run, rows = self.run, part.rows_on_host
        before = {"xt": run.xt.clone(), **{k: x.clone() for k, x in run.state.items()}}
        try:
            run.advance(part, values)
            return len(rows)
        except Exception as error:
            run.xt.copy_(before["xt"])
            for name, value in run.state.items():
                value.copy_(before[name])
            if len(rows) == 1:
                errors[self.handles[rows[0]]] = error
                return 0
        return sum(self._advance(step, None, errors) for step in self.course.apart(run, part))

    def progress(self, row: int) -> Progress:
        """Where a sequence is, between two iterations."""
        run, ess = self.run, self.run.ess[row]
        steps, most = (int(each[row]) for each in self.course.counts(run))
        last = (~ess.isnan()).sum().clamp(min=1) - 1
        return Progress(
            run.xt[row].clone(),
            run.known[row].clone(),
            steps,
            most,
            steps * run.calls,
            ess.gather(0, last[None])[0] if len(ess) else ess.new_tensor(torch.nan),
            None if run.recorder is None else run.recorder.log_q[row].clone(),
        )

    def kept(self, rows: np.ndarray) -> Cohort:
        """A cohort of these sequences alone, between two iterations."""
        handles = [self.handles[row] for row in rows]
        reported = self.reported.intersection(handles)
        return Cohort(self.run.rows(rows), self.course.rest(rows), handles, reported)

    def joined(self, other: Cohort) -> Cohort:
        """A cohort of both, each just made by `kept` or `planned`."""
        return Cohort(
            self.run.joined(other.run),
            self.course.joined(other.course),
            self.handles + other.handles,
            self.reported | other.reported,
        )


@dataclass(frozen=True, eq=False)
class Waiting:
    """Sequences that are to join a session: first tokens [B, L] and seeds [B] on the host."""

    config: GenerationConfig
    xt: Tensor
    seeds: Tensor
    handles: list[int]

    def planned(self, sampler: Sampler) -> Cohort:
        """A cohort of them."""
        config = self.config
        with_energy = sampler.energy is not None and (
            config.num_candidates > 1 or config.correction == "speculative"
        )
        energy_times = config.energy_times if with_energy else None
        masked = self.xt == sampler.denoiser.mask_id
        if config.order in ADAPTIVE:
            course: Course = Adaptive.of(
                masked.numpy(),
                sampler.schedule,
                config.steps,
                config.block_length,
                energy_times,
                ADAPTIVE[config.order].NEEDS_QUOTA,
            )
            none = np.zeros(len(masked), dtype=np.int64)
            counts = none, none.copy(), course.iterations if energy_times else 0
        else:
            plan = plan_reveals(
                self.seeds,
                masked,
                sampler.schedule,
                config.steps,
                energy_times,
                energy_at_fill=config.final == "sample",
                order=config.order,
                block_length=config.block_length,
                remask=config.remask,
            )
            if config.correction == "gibbs" and with_energy:
                plan = plan.swept(config.sweeps)
            course = Planned(plan)
            counts = plan.nfe, plan.energy_steps, int(plan.energy_steps.max(initial=0))
        run = Run(sampler.denoiser, sampler.energy, config, self.xt, self.seeds, *counts)
        return Cohort(run, course, self.handles)

    @classmethod
    def of(cls, alike: list[Waiting]) -> Waiting:
        """All sequences of one configuration."""
        if len(alike) == 1:
            return alike[0]
        xt, seeds = (torch.cat([getattr(new, name) for new in alike]) for name in ("xt", "seeds"))
        return cls(alike[0].config, xt, seeds, [handle for new in alike for handle in new.handles])

    def without(self, handle: int) -> Waiting:
        """The others."""
        stay = [i for i, other in enumerate(self.handles) if other != handle]
        handles = [self.handles[i] for i in stay]
        return Waiting(self.config, self.xt[stay], self.seeds[stay], handles)
