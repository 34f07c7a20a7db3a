"""Does the energy help? The same steps and seeds with it and without it, scored by the AR model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.engine import Engine
from edlm_engine.evaluation.judge import Judge, standard_error
from edlm_engine.evaluation.metrics import token_entropy
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.generation import Generation


@dataclass(frozen=True)
class Score:
    """Means over sequences; `log_p` is nats per token under the AR model, `entropy` nats.

    `judge` is nats per byte of the text under an independent judge, None without one.
    """

    log_p: float
    log_p_stderr: float
    entropy: float
    nfe: float
    energy_evaluations: float
    ess_min: float | None
    ess_mean: float | None
    ess_max: float | None
    judge: float | None = None
    judge_stderr: float | None = None


@dataclass(frozen=True)
class Comparison:
    """`gain` is the mean paired difference of log p_AR per token, with its standard error.

    `judge_gain` is the same of the judge's nats per byte, where lower is better: without less with.
    """

    with_energy: Score
    without_energy: Score
    gain: float
    gain_stderr: float
    judge_gain: float | None = None
    judge_gain_stderr: float | None = None

    def to_json(self) -> dict:
        return asdict(self)


def compare_energy(
    engine: Engine,
    model,
    *,
    num: int = 64,
    batch_size: int = 16,
    config: GenerationConfig | None = None,
    seed: int = 0,
    progress: bool = False,
    judge: Judge | None = None,
) -> Comparison:
    """Generate `num` sequences with the engine's energy and `num` without, at the same seeds.

    `model` is the left-to-right model that scores them (`AutoregressiveModel` protocol), `judge`
    another one that reads their text. Raises ValueError if the engine has no energy, or no
    tokenizer where a judge is given, or if `num` is below 2.
    """
    if engine.energy is None:
        raise ValueError("engine must have an energy to compare with plain MDLM, got None")
    if num < 2:
        raise ValueError(f"num must be >= 2, for a standard error, got {num}")
    if judge is not None and engine.tokenizer is None:
        raise ValueError("a judge reads text: the engine must have a tokenizer, got None")
    config = config or GenerationConfig()
    columns = []
    for variant in (config, replace(config, num_candidates=1)):
        batches = [
            engine.generate(
                min(batch_size, num - first),
                config=variant,
                seed=range(seed + first, seed + min(num, first + batch_size)),
                progress=progress,
            )
            for first in range(0, num, batch_size)
        ]
        columns.append((batches, _log_p(model, batches)))
    gain = columns[0][1] - columns[1][1]
    with_energy, without = (_score(*column) for column in columns)
    whole = Comparison(with_energy, without, gain.mean().item(), standard_error(gain))
    return whole if judge is None else _judged(whole, judge, [c[0] for c in columns], progress)


def _judged(
    comparison: Comparison, judge: Judge, columns: list[list[Generation]], progress: bool
) -> Comparison:
    """The comparison with the judge's columns in it."""
    rates = [
        judge.nats_per_byte([text for b in batches for text in b.texts or ()], progress=progress)
        for batches in columns
    ]
    first, second = (
        replace(score, judge=rate.mean().item(), judge_stderr=standard_error(rate))
        for score, rate in zip(
            (comparison.with_energy, comparison.without_energy), rates, strict=True
        )
    )
    gain = rates[1] - rates[0]
    return replace(
        comparison,
        with_energy=first,
        without_energy=second,
        judge_gain=gain.mean().item(),
        judge_gain_stderr=standard_error(gain),
    )


@torch.inference_mode()
def _log_p(model, batches: list[Generation]) -> Tensor:
    tokens = torch.cat([batch.sequences for batch in batches])
    scored = tokens.shape[1] - model.first_position
    return sequence_log_probs(model, tokens).double().cpu() / scored


def _score(batches: list[Generation], log_p: Tensor) -> Score:
    ess = torch.cat([batch.ess.flatten() for batch in batches]).cpu()
    ess = ess[~ess.isnan()]
    some = len(ess) > 0
    return Score(
        log_p=log_p.mean().item(),
        log_p_stderr=standard_error(log_p),
        entropy=torch.cat([token_entropy(b.sequences) for b in batches]).double().mean().item(),
        nfe=torch.cat([b.nfe for b in batches]).double().mean().item(),
        energy_evaluations=torch.cat([b.energy_evaluations for b in batches])
        .double()
        .mean()
        .item(),
        ess_min=ess.min().item() if some else None,
        ess_mean=ess.mean().item() if some else None,
        ess_max=ess.max().item() if some else None,
    )


def table(comparison: Comparison) -> str:
    """The comparison as a table of text."""
    lines = [f"{'':<28}{'with energy':>16}{'without':>16}"]
    rows = {
        "log p_AR, nats per token": ("log_p", "{:.4f}"),
        "  standard error": ("log_p_stderr", "{:.4f}"),
        "judge, nats per byte": ("judge", "{:.4f}"),
        "  standard error ": ("judge_stderr", "{:.4f}"),
        "unigram entropy, nats": ("entropy", "{:.3f}"),
        "denoiser evaluations": ("nfe", "{:.1f}"),
        "candidates scored": ("energy_evaluations", "{:.1f}"),
        "ESS, smallest": ("ess_min", "{:.3f}"),
        "ESS, mean": ("ess_mean", "{:.3f}"),
        "ESS, largest": ("ess_max", "{:.3f}"),
    }
    if comparison.judge_gain is None:
        rows = {label: row for label, row in rows.items() if not row[0].startswith("judge")}
    for label, (field, form) in rows.items():
        cells = (getattr(s, field) for s in (comparison.with_energy, comparison.without_energy))
        lines.append(f"{label:<28}" + "".join(f"{_cell(form, value):>16}" for value in cells))
    lines.append(
        f"gain: {comparison.gain:+.4f} nats per token, standard error "
        f"{comparison.gain_stderr:.4f} ({comparison.gain / comparison.gain_stderr:+.1f} of them)"
    )
    if comparison.judge_gain is not None and comparison.judge_gain_stderr:
        lines.append(
            f"the judge's gain: {comparison.judge_gain:+.4f} nats per byte, standard error "
            f"{comparison.judge_gain_stderr:.4f} "
            f"({comparison.judge_gain / comparison.judge_gain_stderr:+.1f} of them)"
        )
    return "\n".join(lines)


def _cell(form: str, value: float | None) -> str:
    return "-" if value is None else form.format(value)
