"""What each token cost: the log-probability of everything that was drawn in a generation."""

from __future__ import annotations

import json
import math
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from edlm_engine import ops
from edlm_engine.sampling.steps import Step


@dataclass(frozen=True, repr=False)
class Record:
    """The trajectory of B sequences of length L, with S energy steps of K candidates at most.

    Step s of a sequence is its own s-th energy step, as in `Generation.ess`; entries that are not
    there are NaN, or -1 for `choice`. Tensors are on the denoiser's device.
    """

    step: Tensor  # [B, L] int64: the step that revealed a token, as the plan numbers it; 0: none
    log_q: Tensor  # [B, L] float32: under the law the token was drawn from; NaN where none was
    entropy: Tensor  # [B, L] float32: of that law, nats; NaN where none was
    energies: Tensor  # [B, S, K] float32: of all candidates
    candidate_log_q: Tensor  # [B, S, K] float32: as the energy was given it
    weights: Tensor  # [B, S, K] float32: probability of the choice of each, softmax(-E / T)
    choice: Tensor  # [B, S] int64: the candidate chosen
    log_prob: Tensor  # [B] float64: of all that was drawn, candidates and choices included

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in vars(self).items())
        return f"Record({shapes})"

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Every field as an array on the host."""
        return {name: value.cpu().numpy() for name, value in vars(self).items()}

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict of plain lists per sequence, without the steps it did not take; None for NaN and
        for infinite energies, which JSON cannot hold."""
        rows = []
        for b in range(len(self.step)):
            row = {name: value[b].cpu() for name, value in vars(self).items()}
            taken = int((row["choice"] >= 0).sum())
            rows.append(
                {
                    name: _plain(value[:taken] if name in BY_ENERGY_STEP else value)
                    for name, value in row.items()
                }
            )
        return rows

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dicts())

    def to_parquet(self, path: str | Path) -> None:
        """The same as a Parquet file, one row per sequence; written whole or not at all.

        Raises ImportError without pyarrow.
        """
        import pyarrow
        import pyarrow.parquet

        path = Path(path)
        part = path.with_name(path.name + ".part")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self.to_dicts()), part)
        part.replace(path)


BY_ENERGY_STEP = ("energies", "candidate_log_q", "weights", "choice")


def _plain(value: Tensor) -> Any:
    if not value.is_floating_point() or value.isfinite().all():
        return value.tolist()
    return _none_unless_finite(value.tolist())


def _none_unless_finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_none_unless_finite(each) for each in value]
    return value if math.isfinite(value) else None


class Recorder:
    """A record in the making; its rows are those of a run."""

    def __init__(self, batch: int, length: int, steps: int, candidates: int, device: torch.device):
        self.step = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self.log_q = torch.full((batch, length), torch.nan, device=device)
        self.entropy = self.log_q.clone()
        self.energies = torch.full((batch, steps, candidates), torch.nan, device=device)
        self.candidate_log_q = self.energies.clone()
        self.weights = self.energies.clone()
        self.choice = torch.full((batch, steps), -1, dtype=torch.int64, device=device)
        self.log_prob = torch.zeros(batch, dtype=torch.float64, device=device)

    def rows(self, index: Tensor) -> Recorder:
        """A copy of these sequences."""
        part = copy(self)
        for name, value in vars(self).items():
            setattr(part, name, value.index_select(0, index))
        return part

    def joined(self, other: Recorder) -> Recorder:
        """These sequences and then those of another."""
        both = copy(self)
        width = max(self.choice.shape[1], other.choice.shape[1])
        for name in vars(self):
            parts = [getattr(self, name), getattr(other, name)]
            if name in BY_ENERGY_STEP:
                parts = [_widened(part, width) for part in parts]
            setattr(both, name, torch.cat(parts))
        return both

    def plain(self, step: Step, log_q: Tensor, statistics: Tensor) -> None:
        """Draws [R, K] of which the sequences without the energy reveal candidate 0."""
        first = int(step.masked.sum())  # draws of the sequences with the energy come first
        places = self._places(step, step.draws[first:])
        self._reveal(step, places, step.draws[first:], log_q[first:, 0], statistics[first:, 0])
        self._add_plain(step, log_q)

    def scored(
        self,
        step: Step,
        energy: Tensor,
        sums: Tensor,
        choice: Tensor,
        log_q: Tensor,
        temperature: float,
    ) -> None:
        """Energies and summed log q [E, K] of the candidates, draws [R, K], and what was chosen."""
        scored, first = len(step.times), int(step.masked.sum())
        rows, columns = step.rows[:scored], step.columns
        log_weights = (-energy / temperature).log_softmax(dim=1)
        self.energies[rows, columns] = energy
        self.candidate_log_q[rows, columns] = sums
        self.weights[rows, columns] = log_weights.exp()
        self.choice[rows, columns] = choice
        drawn = ops.sum_log_probs(
            log_q[:first].sum(dim=1),
            scored,
            step.draw_starts[: scored + 1] - step.draw_starts[0],
        )
        chosen = log_weights.gather(1, choice.clamp(min=0)[:, None])[:, 0]
        self.log_prob.index_add_(0, rows, drawn + chosen.double())

    def chosen(self, step: Step, choice: Tensor, log_q: Tensor, statistics: Tensor) -> None:
        """What the sequences with the energy reveal of the chosen candidates."""
        length, first = self.step.shape[1], int(step.masked.sum())
        draws = step.draws[:first]
        own = log_q[:first].gather(1, choice.clamp(min=0)[draws // length, None])[:, 0]
        dense = torch.zeros(2, len(step.times) * length, device=own.device)
        dense[0, draws], dense[1, draws] = own, statistics[:first, 0]
        places = self._places(step, step.reveals)
        self._reveal(step, places, step.reveals, *dense[:, step.reveals])

    def picked(
        self, step: Step, revealed: Tensor, log_q: Tensor, own: Tensor, statistics: Tensor
    ) -> None:
        """What an adaptive order reveals, [n, L] bool, of draws whose own log q is [R]."""
        keep = revealed.view(-1)[step.draws]
        places = self._places(step, step.draws)
        for name, values in (
            ("step", step.numbers[step.draws // self.step.shape[1]]),
            ("log_q", own),
            ("entropy", statistics[:, 0]),
        ):
            flat = getattr(self, name).view(-1)
            flat[places] = torch.where(keep, values, flat[places])
        self._add_plain(step, log_q)

    def filled(self, places: Tensor) -> None:
        """What was not drawn, or is no more, [B, L] bool."""
        self.step.masked_fill_(places, 0)
        self.log_q.masked_fill_(places, torch.nan)
        self.entropy.masked_fill_(places, torch.nan)

    def record(self, width: int) -> Record:
        """What was recorded, of the first `width` energy steps."""
        return Record(
            **{
                name: (value[:, :width] if name in BY_ENERGY_STEP else value).clone()
                for name, value in vars(self).items()
            }
        )

    def _add_plain(self, step: Step, log_q: Tensor) -> None:
        """Count the draws of the sequences without the energy."""
        first, scored = int(step.masked.sum()), len(step.times)
        others = len(step.rows) - scored
        if others:
            starts = step.draw_starts[scored:] - step.draw_starts[scored]
            sums = ops.sum_log_probs(log_q[first:, 0].contiguous(), others, starts)
            self.log_prob.index_add_(0, step.rows[scored:], sums)

    def _places(self, step: Step, places: Tensor) -> Tensor:
        """Places flat in [n, L] as places flat in [B, L]."""
        length = self.step.shape[1]
        return step.rows[places // length] * length + places % length

    def _reveal(
        self, step: Step, to: Tensor, places: Tensor, log_q: Tensor, entropy: Tensor
    ) -> None:
        self.step.view(-1)[to] = step.numbers[places // self.step.shape[1]]
        self.log_q.view(-1)[to] = log_q
        self.entropy.view(-1)[to] = entropy


def _widened(value: Tensor, width: int) -> Tensor:
    """[B, S, ...] with what marks missing steps up to `width` of them."""
    missing = torch.nan if value.is_floating_point() else -1
    return pad(value, [0, 0] * (value.dim() - 2) + [0, width - value.shape[1]], value=missing)
