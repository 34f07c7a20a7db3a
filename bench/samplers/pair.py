"""Tasks with a real pair of models: free text, and held-out text with gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.samplers.canvases import gaps
from bench.samplers.counting import Work
from bench.samplers.given import AR, TEXT, Compared
from bench.samplers.problems import Figure, Problem, Rows
from edlm_engine import Engine
from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.evaluation.judge import standard_error
from edlm_engine.evaluation.metrics import token_entropy
from edlm_engine.evaluation.settings import Setting
from edlm_engine.evaluation.units import Measures


@dataclass(frozen=True)
class PairProblem(Problem):
    """A real pair of models, on free text or on held-out windows with gaps.

    windows: [n, L] held-out text; None is free text without it.
    """

    engine: Engine = None  # type: ignore[assignment]
    measures: Measures = None  # type: ignore[assignment]
    windows: Tensor | None = None
    share: float = 1.0
    gaps: int = 4

    def canvas(self, numbers: Sequence[int]) -> Tensor:
        mask_id = self.denoiser.mask_id
        if self.share == 1:
            return torch.full((len(numbers), self.length), mask_id)
        assert self.windows is not None
        where = gaps(self.length, self.share, self.gaps, list(numbers))
        return self.windows[list(numbers)].masked_fill(where, mask_id)

    def of(self, setting: Setting, drawn: Work, first: int) -> Rows:
        rows, tokens = super().of(setting, drawn, first), drawn.sequences
        free = self.canvas(range(first, first + len(tokens))) == self.denoiser.mask_id
        entropy = token_entropy(tokens[free].view(len(tokens), -1))
        whole, true = self.measures.of(setting, drawn, first), None
        if self.share < 1:
            assert self.windows is not None
            with torch.inference_mode():
                windows = self.windows[first : first + len(tokens)]
                true = sequence_log_probs(self.measures.scorer, windows).tolist()
        scored = self.length - self.measures.scorer.first_position
        for i, (row, measured) in enumerate(zip(rows, whole, strict=True)):
            row |= {k: v for k, v in measured.items() if k in ("judge", "joint", "log_p_ar")}
            row["log_p"] = row["log_p_ar"] * scored / free[i].sum().item()
            if true is not None:
                row["log_p"] -= true[i] / free[i].sum().item()
            row["entropy"] = entropy[i].item()
        return rows

    def measure(self, rows: Rows) -> dict[str, Figure]:
        figures = {}
        for name in self.figures:
            values = torch.tensor([r[name] for r in rows if r.get(name) is not None]).double()
            if len(values) > 1:
                figures[name] = (values.mean().item(), standard_error(values))
        return figures


def pair_problems(
    engine: Engine, windows: Tensor | None, judge: Any, *, steps: int, candidates: tuple[int, ...]
) -> list[PairProblem]:
    """Free text, and with `windows` of held-out text gaps of three sizes."""
    length, model = engine.denoiser.length, engine.energy.model

    def text(denoiser: Any, energy: Any, canvas: Tensor, seeds: Sequence[int]) -> tuple:
        return windows[list(seeds)], 0, 0, 0

    itself = (Compared(TEXT, text, TEXT, {"sampler": TEXT}),) if windows is not None else ()
    shared: dict[str, Any] = {
        "denoiser": engine.denoiser,
        "energy": engine.energy,
        "engine": engine,
        "length": length,
        "steps": steps,
        "candidates": candidates,
        "judged_by": "log_p",
        "orders": ("confidence",),
        "extra": itself,
        "windows": windows,
    }
    about = f"{length} tokens, a vocabulary of {engine.denoiser.vocab_size}"
    figures = {"log_p": ("log p_AR, nats a token", 3), "entropy": ("token entropy, nats", 3)}
    free = figures | {"joint": ("-log p, one token at a time, nats a token", 3)}
    free |= {"judge": ("judge, nats a byte", 4)} if judge is not None else {}
    measures = Measures(engine, judge, model, joint_draws=2)
    problems = [
        PairProblem(
            name="pair-free",
            title="Free text",
            about=about,
            figures=free,
            target=AR,
            measures=measures,
            **shared,
        )
    ]
    figures = figures | {
        "log_p": ("log p_AR of the whole less the text's own, nats a hidden token", 3),
        "entropy": ("entropy of what was hidden, nats", 3),
    }
    bare = Measures(engine, None, model, joint_draws=0)
    for share in (0.25, 0.5, 0.75) if windows is not None else ():
        problems.append(
            PairProblem(
                name=f"pair-gaps-{share * 100:.0f}",
                title=f"{share:.0%} of held-out text in four gaps",
                about=about,
                figures=figures,
                target=TEXT,
                measures=bare,
                share=share,
                **shared,
            )
        )
    return problems
