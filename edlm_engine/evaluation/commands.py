"""`edlm evaluate` and its forms: options into calls, and results into text or JSON."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from edlm_engine.engine import Engine
from edlm_engine.evaluation.compare import compare_energy, table
from edlm_engine.evaluation.held_out import HeldOutLikelihood, held_out_likelihood
from edlm_engine.evaluation.judge import Judge, independent_judge
from edlm_engine.evaluation.mauve import require_mauve
from edlm_engine.evaluation.options import SWEPT
from edlm_engine.evaluation.plots import plot_quality, require_matplotlib
from edlm_engine.evaluation.samples import REPORT, evaluate_samples
from edlm_engine.evaluation.summary import table as samples_table
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.training.corpus import evaluation_windows, read_text, text_files, token_stream

# How the options of the command line become an engine and a configuration.
Load = Callable[[Namespace], Engine]
Configure = Callable[[Namespace], GenerationConfig]


def compare(args: Namespace, load: Load, configure: Configure) -> None:
    """Text with the energy and without it."""
    _require(args, num=2, batch_size=1)
    config = configure(args)
    engine = load(args)
    if engine.energy is None:
        raise ValueError(f"--energy must be an AR model or an NCE energy, got {args.energy}")
    model = engine.energy.model  # type: ignore[union-attr]  # of those that the options name
    if not hasattr(model, "first_position"):  # a learned energy gives no probabilities
        args.energy = "ar"
        model = load(args).energy.model  # type: ignore[union-attr]
    comparison = compare_energy(
        engine,
        model,
        num=args.num,
        batch_size=args.batch_size,
        config=config,
        seed=args.seed,
        progress=args.progress,
        judge=None if args.judge is None else Judge.load(args.judge, device=args.device),
    )
    print(json.dumps(comparison.to_json()) if args.json else table(comparison))


def likelihood(args: Namespace, load: Load, configure: Configure) -> None:
    """Bounds on -log p of held-out text."""
    _require(args, windows=2, draws=1, pool=2, batch_size=1)
    config = configure(args)
    files = text_files(args.data)
    engine = load(args)
    windows, characters = held_out_text(engine, files, config.length, args.windows, args.unwrap)
    found = held_out_likelihood(
        engine,
        windows,
        config=config,
        draws=args.draws,
        pool=args.pool,
        batch_size=args.batch_size,
        seed=args.seed,
        characters_per_token=characters,
        progress=args.progress,
    )
    print(json.dumps(found.to_json()) if args.json else likelihood_table(found))


def held_out_text(
    engine: Engine, files: list, length: int | None, at_most: int, unwrap: bool
) -> tuple[Tensor, float]:
    """(windows [W, L] of the texts of `files`, characters a token)."""
    if engine.tokenizer is None:
        raise ValueError("--tokenizer must be given: the model has none, and the data is text")
    if length is None and getattr(engine.denoiser, "any_length", False):
        raise ValueError("--length must be given: this denoiser has none of its own")
    texts = [read_text(file, unwrap) for file in files]
    stream = token_stream(texts, engine.tokenizer)
    windows = evaluation_windows(stream, length or engine.denoiser.length, at_most)
    return windows, sum(map(len, texts)) / len(stream)


def samples(args: Namespace, load: Load, configure: Configure) -> None:
    """Texts of several configurations, judged."""
    _require(args, num=2, batch_size=1, joint_draws=0)
    if args.mauve:
        require_mauve()
    files = text_files(args.data) if args.data else []
    configs = [configure(part) for part in _sweep(args)]
    engines = {
        label: load(Namespace(**(vars(args) | {"energy": label})))
        for label in dict.fromkeys(args.energy)
    }
    engine, judge = next(iter(engines.values())), None
    if args.judge != "none":
        if engine.tokenizer is None:
            raise ValueError("a judge reads text: give --tokenizer, or --judge none")
        judge = independent_judge(args.judge, list(engines.values()), device=args.device)
    reference = None
    if files:
        windows, _ = held_out_text(engine, files, args.length, args.num, unwrap=True)
        reference = [engine.tokenizer.decode(row) for row in windows.tolist()]
    kept = ("model", "subfolder", "revision", "weights", "mask_id", "dtype")
    summaries, whole = evaluate_samples(
        engines,
        configs,
        args.out,
        judge=judge,
        num=args.num,
        chunk=args.batch_size,
        joint_draws=args.joint_draws,
        mauve=args.mauve,
        mauve_reference=reference,
        seed=args.seed,
        manifest={name: getattr(args, name) for name in kept},
        minutes=args.minutes,
        progress=args.progress,
    )
    if args.json:
        print(json.dumps(summaries))
        return
    print(samples_table(summaries))
    print(f"figures: {args.out / REPORT}, plots: {_plots(summaries, args.out)}")
    if not whole:
        print("stopped by --minutes: the same command goes on from here")


def _sweep(args: Namespace) -> Iterator[Namespace]:
    """The options, once for every combination of those that have several values."""
    names = [flag.removeprefix("--").replace("-", "_") for flag in SWEPT]
    for values in product(*(getattr(args, name) for name in names)):
        yield Namespace(**(vars(args) | dict(zip(names, values, strict=True))))


def _plots(summaries: list[dict[str, Any]], folder: Path) -> str:
    try:
        require_matplotlib()
    except ImportError as error:
        return f"none ({error})"
    return ", ".join(map(str, plot_quality(summaries, folder))) if summaries else "none"


def likelihood_table(found: HeldOutLikelihood) -> str:
    """The bounds as a table of text."""
    one_by_one = "one position at a time" if found.steps is None else f"{found.steps} steps"
    rows: dict[str, Any] = {
        "AR model of the energy, exact": found.ar,
        "denoiser, upper bound": found.denoiser,
        **{f"sampler, K = {k}, upper bound": rate for k, rate in found.sampler.items()},
        "paper's formula, lower log Z": found.paper_lower,
        "paper's formula, upper log Z": found.paper_upper,
    }
    lines = [
        f"-log p of {found.windows} windows of {found.length} tokens, {found.draws} draws each; "
        f"sampler: {one_by_one}",
        f"{'':<34}{'nats/token':>12}{'std. error':>12}{'bits/token':>12}{'bits/char':>12}"
        f"{'perplexity':>12}",
    ]
    for label, rate in rows.items():
        if rate is None:
            continue
        facts = rate.to_json(found.characters_per_token)
        cells = [facts["nats_per_token"], facts["stderr"], facts["bits_per_token"]]
        cells.append(facts.get("bits_per_character"))
        numbers = "".join(f"{'-' if cell is None else format(cell, '.4f'):>12}" for cell in cells)
        lines.append(f"{label:<34}{numbers}{facts['perplexity']:>12.2f}")
    for k, gain in found.gain.items():
        lines.append(
            f"K = {k} against the denoiser alone: {-gain.nats_per_token:+.4f} nats per token, "
            f"standard error {gain.stderr:.4f}"
        )
    if found.log_z_width is not None:
        lines.append(
            "The paper's formula is no bound of a sampler's likelihood, and may fall below the "
            f"entropy of the data. Its two sides of log Z, from {found.pool} candidates of "
            f"effective size {found.ess:.2f}, are {found.log_z_width:.1f} nats apart on average: "
            "where that is not small, trust neither."
        )
    return "\n".join(lines)


def _require(args: Namespace, **least: int) -> None:
    for name, smallest in least.items():
        value = getattr(args, name)
        if value < smallest:
            raise ValueError(f"--{name.replace('_', '-')} must be >= {smallest}, got {value}")
