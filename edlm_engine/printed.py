"""Generated sequences as text or JSON, on standard output."""

from __future__ import annotations

import json
from typing import Any

from edlm_engine.sampling.generation import Generation


def print_json(out: Generation, b: int, record: dict[str, Any] | None) -> None:
    """A line of JSON for sequence b, with what was recorded of it."""
    kept = {} if record is None else {"record": record}
    print(json.dumps(_facts(out, b) | {"tokens": out.sequences[b].tolist()} | kept))


def print_text(title: str, out: Generation, b: int) -> None:
    """A line about sequence b, and its text, or tokens where there is no tokenizer."""
    facts = _facts(out, b)
    ess_note = "" if facts["mean_ess"] is None else f", mean ESS {facts['mean_ess']:.2f}"
    print(
        f"--- {title}: {facts['nfe']} denoiser evaluations, "
        f"{facts['energy_evaluations']} candidates scored{ess_note}"
    )
    print(facts["text"] if out.texts else out.sequences[b].tolist())


def _facts(out: Generation, b: int) -> dict[str, Any]:
    ess = out.ess[b][~out.ess[b].isnan()]
    return {
        "text": out.texts[b] if out.texts else None,
        "seed": int(out.seeds[b]),
        "nfe": int(out.nfe[b]),
        "energy_evaluations": int(out.energy_evaluations[b]),
        "mean_ess": ess.mean().item() if len(ess) else None,
    }
