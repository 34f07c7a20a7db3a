"""Put a trained denoiser and its energies together as one folder that `load_bundle` reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edlm_engine.checkpoints.bundle import load_for_sampling
from edlm_engine.checkpoints.files import TOKENIZER, read_json, write_json
from edlm_engine.checkpoints.native import load_model, save_model
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.training.corpus import held_out_windows
from edlm_engine.training.nce import Contrast
from edlm_engine.training.objectives import FINAL_DRAWS, held_out_contrast, held_out_loss
from edlm_engine.training.run_log import PLOT
from edlm_engine.training.trainer import RECIPE, in_words


def bundle(
    denoiser_run: str | Path,
    ar_run: str | Path,
    out: str | Path,
    data: Iterable[str | Path] = (),
    energy_run: str | Path | None = None,
) -> dict[str, Any]:
    """Write tokenizer.json, recipe.json, denoiser/, ar/ and perhaps energy/; return the recipe.

    Weights are rounded to bfloat16.

    With `data`, files or folders that hold the runs' held-out files, the held-out losses in the
    recipe are those of the rounded weights, measured here in float32; without, they stay those of
    the runs. Raises FileNotFoundError for a folder without a run, and ValueError if the tokenizers
    differ or if there is `data` and nothing was held out.
    """
    runs = {"denoiser": Path(denoiser_run), "ar": Path(ar_run)}
    out = Path(out)
    data = list(data)
    for run in (*runs.values(), *([] if energy_run is None else [Path(energy_run)])):
        _require_run(run)
    texts = {name: (run / TOKENIZER).read_bytes() for name, run in runs.items()}
    if texts["denoiser"] != texts["ar"]:
        raise ValueError(f"runs must share one tokenizer, those of {denoiser_run}, {ar_run} differ")
    recipe = {}
    for name, run in runs.items():
        save_model(load_model(run), out / name, dtype=torch.bfloat16)
        recipe[name] = read_json(run / RECIPE)
        if data:
            recipe[name]["held_out"] = measure(out / name, run, data)
        shutil.copyfile(run / PLOT, out / f"{name}_loss.png")
    temporary = out / f"{TOKENIZER}.tmp"
    temporary.write_bytes(texts["ar"])
    os.replace(temporary, out / TOKENIZER)
    write_json(out / RECIPE, recipe)
    return recipe if energy_run is None else add_energy(energy_run, out, data)


def add_energy(run: str | Path, out: str | Path, data: Iterable[str | Path] = ()) -> dict[str, Any]:
    """Write the energy of a run beside the denoiser of the bundle `out`; return the new recipe.

    With `data`, the held-out figures are those of the rounded weights against that denoiser, both
    as the engine uses them. Raises as `bundle` does, and ValueError for a run of another kind.
    """
    run, out, data = Path(run), Path(out), list(data)
    _require_run(run)
    entry = read_json(run / RECIPE)
    if entry["kind"] != "energy":
        raise ValueError(f"run must be of an energy, {run} is of a {entry['kind']}")
    if (run / TOKENIZER).read_bytes() != (out / TOKENIZER).read_bytes():
        raise ValueError(
            f"an energy must have its bundle's tokenizer, those of {run}, {out} differ"
        )
    save_model(load_model(run), out / "energy", dtype=torch.bfloat16)
    if data:
        entry["held_out"] = _measure_energy(out, run, entry["config"], data)
    shutil.copyfile(run / PLOT, out / "energy_loss.png")
    recipe = read_json(out / RECIPE) | {"energy": entry}
    write_json(out / RECIPE, recipe)
    return recipe


def _measure_energy(
    out: Path, run: Path, settings: dict[str, Any], data: list[str | Path]
) -> dict[str, Any]:
    windows, _ = _held_out(run, settings, data)
    whole = load_for_sampling(out, energy="nce")
    model = Contrast(whole.denoiser, whole.nce, settings["negatives"])
    found = in_words(held_out_contrast(model, windows, draws=FINAL_DRAWS), "nats per window")
    return found | {
        "meaning": "-log sigma(-E) of data and of draws -log sigma(E), 1.386 by chance; share told "
        "apart; mean E of draws less that of data",
        "windows": len(windows),
        "draws_per_window": FINAL_DRAWS,
        "seed": 0,
    }


def _require_run(run: Path) -> None:
    if not (run / RECIPE).is_file():
        raise FileNotFoundError(f"no training run at {run}: looked for {run / RECIPE}")


def _held_out(
    run: Path, settings: dict[str, Any], data: Iterable[str | Path]
) -> tuple[Tensor, float]:
    """The windows a training run ends with, and the characters of their tokens."""
    if not settings["held_out"]:
        raise ValueError(f"{run} held no text out to measure on: bundle it without data")
    tokenizer = Tokenizer.from_file(run / TOKENIZER)
    return held_out_windows(data, settings, tokenizer, settings["final_windows"])


def measure(weights: Path, run: Path, data: Iterable[str | Path]) -> dict[str, Any]:
    """Held-out loss of saved weights, on the windows a training run ends with."""
    recipe = read_json(run / RECIPE)
    kind, settings = recipe["kind"], recipe["config"]
    windows, characters = _held_out(run, settings, data)
    loss = held_out_loss(kind, load_model(weights, dtype=torch.float32), windows, draws=FINAL_DRAWS)
    return {
        "nats_per_token": round(loss, 4),
        "nats_per_character": round(loss / characters, 4),
        "meaning": "-log p" if kind == "ar" else "upper bound of -log p",
        "windows": len(windows),
        "draws_per_window": 1 if kind == "ar" else FINAL_DRAWS,
        "seed": 0,
    }
