"""Put a trained denoiser and AR model together as one folder that `load_bundle` reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from edlm_engine.checkpoints.files import TOKENIZER, read_json, write_json
from edlm_engine.checkpoints.native import load_model, save_model
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.training.corpus import held_out_windows
from edlm_engine.training.objectives import FINAL_DRAWS, held_out_loss
from edlm_engine.training.run_log import PLOT
from edlm_engine.training.trainer import RECIPE


def bundle(
    denoiser_run: str | Path, ar_run: str | Path, out: str | Path, data: Iterable[str | Path] = ()
) -> dict[str, Any]:
    """Write tokenizer.json, recipe.json, denoiser/ and ar/, in bfloat16; return the recipe.

    With `data`, files or folders that hold the runs' held-out files, the held-out losses in the
    recipe are those of the rounded weights, measured here in float32; without, they stay those of
    the runs. Raises FileNotFoundError for a folder without a run, and ValueError if the tokenizers
    differ or if there is `data` and nothing was held out.
    """
    runs = {"denoiser": Path(denoiser_run), "ar": Path(ar_run)}
    out = Path(out)
    data = list(data)
    for run in runs.values():
        if not (run / RECIPE).is_file():
            raise FileNotFoundError(f"no training run at {run}: looked for {run / RECIPE}")
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
    return recipe


def measure(weights: Path, run: Path, data: Iterable[str | Path]) -> dict[str, Any]:
    """Held-out loss of saved weights, on the windows a training run ends with."""
    recipe = read_json(run / RECIPE)
    kind, settings = recipe["kind"], recipe["config"]
    if not settings["held_out"]:
        raise ValueError(f"{run} held no text out to measure on: bundle it without data")
    tokenizer = Tokenizer.from_file(run / TOKENIZER)
    windows, characters = held_out_windows(data, settings, tokenizer, settings["final_windows"])
    loss = held_out_loss(kind, load_model(weights, dtype=torch.float32), windows, draws=FINAL_DRAWS)
    return {
        "nats_per_token": round(loss, 4),
        "nats_per_character": round(loss / characters, 4),
        "meaning": "-log p" if kind == "ar" else "upper bound of -log p",
        "windows": len(windows),
        "draws_per_window": 1 if kind == "ar" else FINAL_DRAWS,
        "seed": 0,
    }
