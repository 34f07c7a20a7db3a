"""What `edlm demo` shows: a free text and a text with gaps, each with the energy and without."""

from __future__ import annotations

import logging
import re
import textwrap
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.engine import Engine
from edlm_engine.sampling.config import GenerationConfig

_log = logging.getLogger(__name__)

# Words in brackets are the gaps: the models see the rest, and their number of tokens.
GAPS = (
    "The old[ man opened the] door slowly, and looked[ round] the[ room, but it was] empty. He "
    "did[ not] speak for a long[ time. At last he] sat down by the[ fire] and[ began to read a] "
    "letter from his[ daughter, who had gone to] live in[ London.]"
)
STEPS, CANDIDATES, TOP_P, LENGTH = 32, 4, 0.9, 64
TEXTS = 3  # one is shown; log p_AR of one text says little, so it is a mean


def demo(seed: int = 0) -> None:
    """Print it all, by the pair of SmolLM2 where its base is found, else by the small pair."""
    try:
        engine = Engine.from_pretrained("smollm2")
        print("SmolLM2-135M: adapted to masked diffusion as the denoiser, as it is as the energy.")
    except (FileNotFoundError, ImportError) as error:
        _log.info("the small bundled pair is shown: %s", error)
        engine = Engine.from_pretrained()
        print("The small bundled pair: two models of six million parameters, an hour on one core.")
    config = GenerationConfig(steps=STEPS, num_candidates=CANDIDATES, top_p=TOP_P, length=LENGTH)
    print(
        f"{STEPS} steps, top-p {TOP_P}; with the energy, {CANDIDATES} candidates a step. "
        f"Figures are of {TEXTS} texts, the first is shown."
    )
    _show(engine, "A free text", config, None, seed)
    canvas, pieces = gap_canvas(engine)
    given = "".join("[" + " ." * len(ids) + " ]" if gap else text for text, gap, ids in pieces)
    print(f"\nA text with gaps, a dot for each token to be filled in\n{_wrapped(given)}")
    _show(engine, "Its gaps filled in", replace(config, length=canvas.shape[1]), canvas, seed)


def gap_canvas(engine: Engine) -> tuple[Tensor, list[tuple[str, bool, list[int]]]]:
    """(canvas [1, L], its pieces as text, whether it is a gap, and tokens) of `GAPS`."""
    parts = [part for part in re.split(r"(\[[^]]*\])", GAPS) if part]
    pieces = []
    for part in parts:
        gap = part.startswith("[")
        text = part[1:-1] if gap else part
        pieces.append((text, gap, engine.tokenizer.encode(text)))
    mask = engine.denoiser.mask_id
    tokens = [mask if gap else token for _, gap, ids in pieces for token in ids]
    return torch.tensor([tokens]), pieces


def _show(
    engine: Engine, title: str, config: GenerationConfig, canvas: Tensor | None, seed: int
) -> None:
    for name, candidates in (("without the energy", 1), ("with the energy", CANDIDATES)):
        start = time.perf_counter()
        out = engine.generate(
            TEXTS,
            config=replace(config, num_candidates=candidates),
            seed=seed,
            canvas=None if canvas is None else canvas.expand(TEXTS, -1),
        )
        seconds = time.perf_counter() - start
        ess = "" if candidates == 1 else f", mean ESS {out.ess.nanmean():.2f} of {candidates}"
        log_p = _log_p(engine, out.sequences)
        print(f"\n{title}, {name}: log p_AR {log_p:.2f} nats a token{ess}, {seconds:.1f} s")
        print(_wrapped(_marked(engine, out.sequences[0], canvas)), flush=True)


@torch.inference_mode()
def _log_p(engine: Engine, sequences: Tensor) -> float:
    model: Any = engine.energy.model  # type: ignore[union-attr]  # an AR energy in either pair
    scored = sequences.shape[1] - model.first_position
    return sequence_log_probs(model, sequences).mean().item() / scored


def _marked(engine: Engine, sequence: Tensor, canvas: Tensor | None) -> str:
    """The text, with brackets around what was filled into a canvas."""
    tokens = sequence.tolist()
    if canvas is None:
        return engine.tokenizer.decode(tokens)
    filled = (canvas[0] == engine.denoiser.mask_id).tolist()
    text, first = "", 0
    for last in range(1, len(tokens) + 1):
        if last == len(tokens) or filled[last] != filled[first]:
            part = engine.tokenizer.decode(tokens[first:last])
            text += f"[{part}]" if filled[first] else part
            first = last
    return text


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 96, initial_indent="  ", subsequent_indent="  ")
