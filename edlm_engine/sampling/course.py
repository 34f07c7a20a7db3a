"""Where the sequences of a cohort are, and the steps they take next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from edlm_engine.sampling.plan import RevealPlan
from edlm_engine.sampling.run import Run
from edlm_engine.sampling.steps import Step, steps_of

# Steps are made for many iterations at once, but few where others may join any moment, or an EOS
# may end some.
FIRST_BLOCK = 4


class Course(Protocol):
    """The steps of all sequences of a run, iteration after iteration."""

    closed: bool  # nothing will join: as many steps as memory allows may be made at once

    @property
    def iterations(self) -> int:
        """How many iterations there are at most."""
        ...

    def counts(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        """[B] how many steps each sequence has taken, and how many it takes at most."""
        ...

    def ended(self, run: Run) -> np.ndarray:
        """[B] bool: which sequences have taken all their steps."""
        ...

    def next(self, run: Run) -> list[Step]:
        """The steps of the present iteration, to be taken one by one; none if all have ended."""
        ...

    def apart(self, run: Run, part: Step) -> list[Step]:
        """A step of several sequences in the present iteration as a step of each."""
        ...

    def done(self, run: Run) -> None:
        """The present iteration is over."""
        ...

    def end(self, run: Run, rows: np.ndarray) -> None:
        """The sequences `rows` [B] bool take no step any more; nothing of them is masked."""
        ...

    def rest(self, rows: np.ndarray) -> Course:
        """What is left of these sequences."""
        ...

    def joined(self, other: Course) -> Course:
        """The sequences of both; `other` is of the same kind."""
        ...


class Planned:
    """A reveal plan, followed."""

    closed = False

    def __init__(self, plan: RevealPlan):
        self.plan = plan
        self.taken = 0
        self._steps: Iterator[list[Step]] | None = None

    @property
    def iterations(self) -> int:
        return self.plan.iterations

    def counts(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        return run.nfe - (self.plan.nfe - self.taken).clip(min=0), run.nfe

    def ended(self, run: Run) -> np.ndarray:
        return self.taken >= self.plan.nfe

    def next(self, run: Run) -> list[Step]:
        if self._steps is None:
            certain = self.closed and run.config.eos_id is None
            self._steps = steps_of(
                self.plan,
                run.seeds,
                one_by_one=run.config.batch_invariant,
                first=self.taken,
                first_block=None if certain else FIRST_BLOCK,
            )
        return next(self._steps, [])

    def apart(self, run: Run, part: Step) -> list[Step]:
        wanted = set(part.rows_on_host.tolist())
        (steps,) = steps_of(
            self.plan, run.seeds, one_by_one=True, first=self.taken, last=self.taken + 1
        )
        return [step for step in steps if int(step.rows_on_host[0]) in wanted]

    def done(self, run: Run) -> None:
        self.taken += 1

    def end(self, run: Run, rows: np.ndarray) -> None:
        early = rows & ~self.ended(run)
        if not early.any():
            return
        cut = self.plan.cut(early, self.taken)
        run.nfe -= self.plan.nfe - cut.nfe
        run.energy_steps -= self.plan.energy_steps - cut.energy_steps
        self.plan, self._steps = cut, None

    def rest(self, rows: np.ndarray) -> Planned:
        return Planned(self.plan.rest(rows, np.minimum(self.taken, self.plan.nfe[rows])))

    def joined(self, other: Course) -> Planned:
        assert isinstance(other, Planned) and self.taken == other.taken == 0
        return Planned(self.plan.joined(other.plan))
