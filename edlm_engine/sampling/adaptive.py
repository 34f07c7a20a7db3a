"""The course of an order that looks at what was drawn: it is known one step at a time."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch

from edlm_engine.execution.upload import upload
from edlm_engine.sampling.course import Course
from edlm_engine.sampling.orders.timetable import blocks_of, quotas, stacked
from edlm_engine.sampling.run import Run
from edlm_engine.sampling.schedule import LogLinearSchedule
from edlm_engine.sampling.steps import Pick, Step, Taken, made

# What it holds of each sequence.
BY_ROW = ("masked", "block", "free", "steps", "quota", "energy_times")


@dataclass(eq=False)
class Adaptive:
    """Steps from the tokens as they are: the host reads once a step where masks are left.

    A step's time is that at which as much is masked on average, so time runs from 1 to 0 whatever
    was given. A sequence draws where it may reveal, or everywhere masked if it uses the energy.
    """

    masked: np.ndarray  # [B, L] bool, of the present iteration
    block: np.ndarray  # [B, L], -1 where never masked
    free: np.ndarray  # [B]: positions that were masked at the start
    steps: np.ndarray  # [B]: how many are asked for
    quota: np.ndarray  # [B, J]: how many each step reveals, if the order has quotas, else ones
    energy_times: np.ndarray  # [B, 2]: low, high
    schedule: LogLinearSchedule
    has_quota: bool
    closed: bool = False
    _fresh: bool = True  # `masked` is that of the present iteration

    @classmethod
    def of(
        cls,
        free: np.ndarray,
        schedule: LogLinearSchedule,
        steps: int | None,
        block_length: int | None,
        energy_times: tuple[float, float] | None,
        has_quota: bool,
    ) -> Adaptive:
        """The whole course of sequences with these free positions [B, L] bool."""
        block = blocks_of(free, block_length)
        counts = [quotas(row, steps if has_quota else None) for row in block]
        times = np.tile(energy_times or (np.inf, -np.inf), (len(free), 1))
        return cls(
            masked=free.copy(),
            block=block,
            free=free.sum(axis=1),
            steps=np.full(len(free), free.shape[1] if steps is None else steps),
            quota=stacked(counts, np.int64),
            energy_times=times,
            schedule=schedule,
            has_quota=has_quota,
        )

    @property
    def iterations(self) -> int:
        return self.quota.shape[1]

    def counts(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        most = (self.quota > 0).sum(axis=1)
        return run.nfe, np.where(self.ended(run), run.nfe, most)

    def ended(self, run: Run) -> np.ndarray:
        self._refresh(run)
        return np.logical_not(self.masked.any(axis=1))

    def next(self, run: Run) -> list[Step]:
        self._refresh(run)
        rows = np.flatnonzero(self.masked.any(axis=1))
        return self._steps(run, rows, one_by_one=run.config.batch_invariant)

    def apart(self, run: Run, part: Step) -> list[Step]:
        return self._steps(run, np.sort(part.rows_on_host), one_by_one=True)

    def done(self, run: Run) -> None:
        rows = np.flatnonzero(self.masked.any(axis=1))
        run.nfe[rows] += 1
        run.energy_steps[rows] += self._times(rows)[1]
        self._fresh = False

    def end(self, run: Run, rows: np.ndarray) -> None:
        pass  # the tokens say it: nothing of them is masked

    def rest(self, rows: np.ndarray) -> Adaptive:
        part = copy(self)
        for name in BY_ROW:
            setattr(part, name, getattr(self, name)[rows])
        return part

    def joined(self, other: Course) -> Adaptive:
        assert isinstance(other, Adaptive)
        both = copy(self)
        width = max(self.iterations, other.iterations)
        for name in BY_ROW:
            ours, theirs = getattr(self, name), getattr(other, name)
            if name == "quota":
                ours, theirs = (
                    np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (ours, theirs)
                )
            setattr(both, name, np.concatenate([ours, theirs]))
        both._fresh = self._fresh and other._fresh
        return both

    def _refresh(self, run: Run) -> None:
        if not self._fresh:
            self.masked = run.masked() & (self.block >= 0)
            self._fresh = True

    def _steps(self, run: Run, rows: np.ndarray, *, one_by_one: bool) -> list[Step]:
        if len(rows) == 0:
            return []
        times, energy = self._times(rows)
        order = np.argsort(~energy, kind="stable")
        rows, times, energy = rows[order], times[order], energy[order]
        masked, block = self.masked[rows], self.block[rows]
        first = np.where(masked, block, block.shape[1]).min(axis=1)
        eligible = masked & (block == first[:, None])
        taken = Taken(
            rows=rows,
            numbers=run.nfe[rows] + 1,
            times=times,
            energy=energy,
            columns=run.energy_steps[rows],
            fills=np.zeros(len(rows), dtype=bool),
            drawn=np.where(energy[:, None], masked, eligible),
            revealed=np.zeros_like(masked),
            hidden=None,
        )
        heads = np.arange(len(rows)) if one_by_one else np.zeros(1, dtype=np.int64)
        quota = self._quota(run, rows)
        device = run.seeds.device
        eligible_, quota_ = upload(
            device, torch.from_numpy(eligible.astype(np.int64).ravel()), torch.from_numpy(quota)
        )
        allowed = eligible_.view(eligible.shape).bool()
        steps = []
        for head, step in zip(
            heads.tolist(), made(taken, heads, run.seeds, self.schedule), strict=True
        ):
            own = slice(head, head + len(step.rows_on_host))
            steps.append(step._replace(pick=Pick(allowed[own], quota_[own])))
        return steps

    def _quota(self, run: Run, rows: np.ndarray) -> np.ndarray:
        """How many positions the present step of each reveals: as planned, or an equal part of what
        is left over the steps that are left."""
        if self.has_quota:
            return self.quota[rows, run.nfe[rows]]
        left = self.masked[rows].sum(axis=1)
        return -(-left // np.maximum(1, self.steps[rows] - run.nfe[rows]))

    def _times(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Time of the present step of each, and whether it uses the energy."""
        left = torch.from_numpy(self.masked[rows].sum(axis=1) / self.free[rows])
        times = self.schedule.time_of(left).numpy()
        low, high = self.energy_times[rows].T
        return times, (low <= times) & (times <= high)
