"""Energies of text and of the denoiser's candidates, and the effective sample size, over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.files import read_json, write_json
from edlm_engine.evaluation.bound_terms import Places, log_weights
from edlm_engine.evaluation.marginals import Marginals
from edlm_engine.evaluation.metrics import effective_sample_size
from edlm_engine.evaluation.noising import noisy_windows

DRAWS = 8  # noisy states of each window, at stratified shares of masked positions
POOL = 16  # candidates of each
BINS = 8


@torch.inference_mode()
def energies(
    engines: Mapping[str, Engine], windows: Tensor, out: Path, *, chunk: int, progress: bool
) -> dict[str, list[dict[str, float]]]:
    """Records of every noisy window by energy: the share t of positions that is masked, E of the
    text, E of candidates, and ESS of 4 and of 16 of them. A unit is a chunk of windows."""
    folder = out / "energies"
    records: dict[str, list[dict[str, float]]] = {label: [] for label in engines}
    starts = range(0, len(windows) - len(windows) % chunk, chunk)
    units = [(first, label) for first in starts for label in engines]
    for first, label in tqdm(units, desc="energies over t", unit="unit", disable=not progress):
        file = folder / label / f"{first:06d}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = _records(engines[label], windows[first : first + chunk], first)
            write_json(file, {"records": rows})
        records[label] += read_json(file)["records"]
    return records


def _records(engine: Engine, windows: Tensor, first: int) -> list[dict[str, float]]:
    config = GenerationConfig(steps=None, num_candidates=2)
    noisy = noisy_windows(windows, engine.schedule, None, (0.0, 1.0), DRAWS, 0, first)
    masked = torch.from_numpy(noisy.masked)
    denoiser: Any = engine.denoiser
    xt = noisy.x0.masked_fill(masked, denoiser.mask_id)
    places = masked.flatten().nonzero().flatten()
    target = noisy.x0.flatten()[places]
    marginals = Marginals(denoiser, xt, noisy.sigmas, places)
    own = Places(marginals, marginals.log_probs(target), target, places)
    data, free, _ = log_weights(engine, noisy, config, xt, own, POOL, 0)
    share = masked.double().mean(1)
    columns = {
        "t": share,
        "text": -data,
        "candidates": -free.mean(1),
        "spread": free.std(1),
        "ess_4": effective_sample_size(free.view(len(free), -1, 4)).mean(1),
        "ess_16": effective_sample_size(free),
    }
    return [{name: value[i].item() for name, value in columns.items()} for i in range(len(free))]


def over_time(records: list[dict[str, float]], name: str) -> list[tuple[float, float, float]]:
    """(middle of the bin of t, mean, standard error) of a column."""
    points = []
    for bin_ in range(BINS):
        here = [r for r in records if bin_ <= r["t"] * BINS - 1e-9 < bin_ + 1]
        values = torch.tensor([r[name] for r in here], dtype=torch.float64)
        if len(values) > 1:
            error = values.std().item() / math.sqrt(len(values))
            points.append(((bin_ + 0.5) / BINS, values.mean().item(), error))
    return points
