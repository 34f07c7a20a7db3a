"""What samplers are asked to do, and how far from right what they do is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bench.samplers.counting import Work, counted
from bench.samplers.given import ADAPTIVE, Compared
from edlm_engine.evaluation.settings import Setting

Rows = list[dict[str, Any]]
Figure = tuple[float, float]  # a value and its standard error


@dataclass(frozen=True)
class Problem:
    """A task: the canvas of every number, and what is measured of its completions.

    figures: (name of a figure, its title and digits). judged_by: the figure of the share of the gap
    between MDLM and `target`, a sampler of the task, that a sampler closes.
    """

    name: str
    title: str
    about: str
    denoiser: Any
    energy: Any
    length: int
    steps: int
    candidates: tuple[int, ...]
    figures: dict[str, tuple[str, int]]
    judged_by: str
    target: str
    extra: tuple[Compared, ...] = ()
    orders: tuple[str, ...] = ("leftmost", *ADAPTIVE)
    facts: dict[str, Any] = field(default_factory=dict)

    def canvas(self, numbers: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def of(self, setting: Setting, drawn: Work, first: int) -> Rows:
        """Records of sequences numbered from `first`, for `edlm_engine.evaluation.units`."""
        rows: Rows = [{"tokens": tokens} for tokens in drawn.sequences.tolist()]
        for i, row in enumerate(rows):
            row |= {"nfe": float(drawn.nfe[i]), "ar": float(drawn.energy_evaluations[i])}
            row |= {"positions": float(drawn.positions[i])}
            row |= {"depth": drawn.depth, "ar_depth": drawn.ar_depth}
        return rows

    def measure(self, rows: Rows) -> dict[str, Figure]:
        """The figures of a sampler's records, numbered from 0."""
        raise NotImplementedError

    def setting(self, compared: Compared) -> Setting:
        def draw(seeds: Sequence[int]) -> Work:
            canvas = self.canvas(seeds)
            return counted(compared.sample, self.denoiser, self.energy, canvas, seeds)

        facts = {"problem": self.name, **self.facts, **compared.facts}
        return Setting(compared.name, facts, draw)
