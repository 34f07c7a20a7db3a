"""The page of results: what each figure shows, on which model, and the published numbers beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.quality import sections
from bench.quality.experiments import Plan
from bench.quality.rows import Summary, plus_minus
from bench.report.page import table
from edlm_engine.evaluation.settings import Setting

# Table 3 of the paper: GPT-2 judge, 2048 texts of 1024 tokens, an energy at every step.
PUBLISHED = {
    "data": {"-": (14.7, 7.7)},
    "AR": {"1024": (35.7, 8.1)},
    "MDLM": {"256": (66.8, 7.9), "512": (52.4, 7.8), "1024": (42.6, 7.6), "2048": (34.9, 7.5)},
    "EDLM-AR": {"256": (62.1, 7.9), "512": (42.0, 7.6), "1024": (25.5, 7.2), "2048": (17.9, 6.9)},
    "EDLM-NCE": {"256": (61.7, 7.9), "512": (42.5, 7.6), "1024": (25.5, 7.3), "2048": (17.7, 6.9)},
}


@dataclass(frozen=True)
class Page:
    """What the page is made of.

    summaries: by the key of a setting; `judged` in each holds the judge's figure of every text.
    text: the judge on held-out text. facts: the models, the judge, the machine, in words. on: the
    models in a word or two.
    """

    plan: Plan
    summaries: Mapping[str, Summary]
    energies: sections.Records
    text: Mapping[str, float] | None
    facts: Mapping[str, str]
    on: str
    whole: bool

    def write(self, folder: Path) -> Path:
        """README.md and its plots; what has no result yet is left out."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = [self._head()]
        if len(shown := self._of([self.plan.joint, *self.plan.steps])) > 1:
            parts.append(sections.over_steps(shown, folder, self.on))
        if len(shown := self._of(self.plan.grid)) > 1:
            parts.append(sections.candidates_by_windows(shown, folder, self.on))
        if any(self.energies.values()):
            parts.append(sections.energies_over_time(self.energies, folder, self.on))
        noise = self._of(self.plan.noise)
        if len(shown := self._of(self.plan.faults)) > 1:
            parts.append(sections.released_faults(shown, noise, folder, self.on))
        page = folder / "README.md"
        temporary = page.with_suffix(".tmp")
        temporary.write_text("\n\n".join([*filter(None, parts), _published()]) + "\n")
        temporary.replace(page)
        return page

    def _of(self, settings: Sequence[Setting]) -> list[Summary]:
        return [self.summaries[s.key] for s in settings if s.key in self.summaries]

    def _head(self) -> str:
        counts = [s["sequences"] for s in self.summaries.values()]
        facts = dict(self.facts)
        facts["texts of each setting"] = f"{min(counts, default=0)} to {max(counts, default=0)}"
        if not self.whole:
            facts["texts of each setting"] += "; the run was stopped, the same command goes on"
        if self.text is not None:
            rate = plus_minus(self.text, 4)
            facts["the judge on held-out text of this length"] = f"{rate} nats per byte"
        listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
        return f"""# Quality

The paper's experiments on our own models, written by `make quality`. These are not the paper's
models: no number here may be set against one of its tables.

{listed}

Error bars, and ±, are standard errors over texts; differences are paired by seed. Cost is counted
in evaluations of a model on one sequence, the denoiser's and the energy's together, which are of
one size here. Seconds are in no figure, for other work ran beside: the tables have those of the
fastest unit of work, per text."""


def _published() -> str:
    rows = [
        [model, steps, f"{perplexity}", f"{bits}"]
        for model, points in PUBLISHED.items()
        for steps, (perplexity, bits) in points.items()
    ]
    return f"""## Published

Xu et al., ICLR 2025, Table 3: models of 170 M parameters on OpenWebText, 1024 tokens, generative
perplexity under GPT-2, entropy in bits. Other models, another judge and unit, and the random
numbers of the released code: the direction of a change is all that can be compared.

{table(["model", "steps", "perplexity", "entropy, bits"], rows)}"""
