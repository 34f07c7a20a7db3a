"""Tasks with models without error: text of hidden Markov models, whose laws are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.samplers.canvases import gaps
from bench.samplers.given import EXACT, Compared
from bench.samplers.problems import Figure, Problem, Rows
from edlm_engine import ARResidualEnergy
from edlm_engine.evaluation.distances import (
    kullback_leibler,
    largest_step,
    numbers_of,
    pair_shares,
    share_variation,
    total_variation,
)
from edlm_engine.evaluation.judge import standard_error
from edlm_engine.evaluation.oracle import HiddenMarkov, OracleAR, OracleDenoiser

REFERENCE = 1 << 40  # seeds of exact draws begin here
COPIES = 16  # exact draws to compare with, of each canvas
LAGS = (0, 1, 4)


def _exact(law: HiddenMarkov) -> Compared:
    def sample(denoiser: Any, energy: Any, canvas: Tensor, seeds: Sequence[int]) -> tuple:
        return law.draw(canvas, seeds), 0, 0, 0

    return Compared(EXACT, sample, EXACT, {"sampler": EXACT})


@dataclass(frozen=True)
class OracleProblem(Problem):
    """Text of a hidden Markov model, free (share 1) or in gaps of what it drew."""

    law: HiddenMarkov = None  # type: ignore[assignment]
    share: float = 1.0
    gaps: int = 2

    def canvas(self, numbers: Sequence[int]) -> Tensor:
        free = torch.full((len(numbers), self.length), self.law.mask_id)
        if self.share == 1:
            return free
        seeds = torch.tensor(list(numbers)) + 2 * REFERENCE
        where = gaps(self.length, self.share, self.gaps, list(numbers))
        return self.law.draw(free, seeds).masked_fill(where, self.law.mask_id)

    def measure(self, rows: Rows) -> dict[str, Figure]:
        tokens = torch.tensor([row["tokens"] for row in rows])
        canvas, exact_log_p, laws = self._reference(len(rows))
        free = canvas == self.law.mask_id
        log_p = (self.law.log_prob(tokens) - self.law.log_prob(canvas)) / free.sum(1)
        error = standard_error(log_p) ** 2 + standard_error(exact_log_p) ** 2
        figures = {
            "log_p": ((log_p.mean() - exact_log_p.mean()).item(), error**0.5),
            "ks": (largest_step(log_p, exact_log_p), float("nan")),
        }
        for lag, law in zip(LAGS, laws, strict=True):
            found = share_variation(pair_shares(tokens, free, lag, self.law.tokens), law)
            figures[f"pairs_{lag}"] = (found.value, found.stderr)
        return figures

    def _reference(self, count: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Canvases [count, L]; of exact draws of each log p per free token, and their pairs."""
        found = self._kept.get(count)
        if found is None:
            canvas = self.canvas(range(count))
            many = canvas.repeat(COPIES, 1)
            free = many == self.law.mask_id
            drawn = self.law.draw(many, torch.arange(len(many)) + REFERENCE)
            log_p = (self.law.log_prob(drawn) - self.law.log_prob(many)) / free.sum(1)
            laws = [pair_shares(drawn, free, lag, self.law.tokens).mean(0) for lag in LAGS]
            found = self._kept[count] = canvas, log_p, laws
        return found

    @cached_property
    def _kept(self) -> dict[int, tuple[Tensor, Tensor, list[Tensor]]]:
        return {}


@dataclass(frozen=True)
class CountableProblem(OracleProblem):
    """One canvas with so few free positions that all completions can be counted.

    number: of the canvas.
    """

    number: int = 0

    def canvas(self, numbers: Sequence[int]) -> Tensor:
        return super().canvas([self.number]).expand(len(numbers), -1)

    def measure(self, rows: Rows) -> dict[str, Figure]:
        tokens = torch.tensor([row["tokens"] for row in rows])
        canvas = self.canvas([0])[0]
        _, law = self.law.enumerate(canvas)
        codes = numbers_of(tokens, canvas == self.law.mask_id, self.law.tokens)
        tv, kl = total_variation(codes, law), kullback_leibler(codes, law)
        return {"tv": (tv.excess, tv.stderr), "kl": (kl.excess, kl.stderr)}


def oracle_problems() -> list[OracleProblem]:
    # Of some random laws and canvases, those where revealing several tokens at once is an error
    # that shows.
    small = HiddenMarkov.random(4, 3, seed=7, sharpness=7.0)
    large = HiddenMarkov.random(8, 16, seed=6, sharpness=4.0)
    counted_figures = {
        "tv": ("total variation, less its floor", 3),
        "kl": ("KL(samples, law), less its floor, nats", 3),
    }
    figures = {
        "log_p": ("log p less that of exact draws, nats a free token", 3),
        "pairs_0": ("TV of tokens", 3),
        "pairs_1": ("TV of neighbours", 3),
        "pairs_4": ("TV of tokens 4 apart", 3),
        "ks": ("KS of log p", 3),
    }
    problems: list[OracleProblem] = []

    def add(kind: type, name: str, title: str, law: HiddenMarkov, length: int, **options: Any):
        about = f"{law.states} states, {law.tokens} tokens, {length} positions"
        shown = counted_figures if kind is CountableProblem else figures
        problems.append(
            kind(
                name=name,
                title=title,
                about=about,
                denoiser=OracleDenoiser(law, length),
                energy=ARResidualEnergy(OracleAR(law, length)),
                length=length,
                figures=shown,
                judged_by="tv" if kind is CountableProblem else "pairs_1",
                target=EXACT,
                extra=(_exact(law),),
                facts={"law": law.log_prob(torch.zeros(1, length, dtype=torch.int64)).item()},
                law=law,
                **options,
            )
        )

    few: dict[str, Any] = {"steps": 2, "candidates": (2, 4, 8, 16)}
    some: dict[str, Any] = {"steps": 8, "candidates": (2, 4, 8)}
    gapped: dict[str, Any] = some | {"steps": 2}
    add(CountableProblem, "counted-free", "All sequences counted, free text", small, 6, **few)
    counted_gaps = few | {"share": 6 / 32, "gaps": 1, "number": 27}
    title = "All completions counted, a gap of six positions"
    add(CountableProblem, "counted-gaps", title, small, 32, **counted_gaps)
    add(OracleProblem, "free", "Free text", large, 32, **some)
    for share in (0.25, 0.5, 0.75):
        title = f"{share:.0%} of the text in two gaps"
        add(OracleProblem, f"gaps-{share:.0%}".rstrip("%"), title, large, 32, share=share, **gapped)
    return problems
