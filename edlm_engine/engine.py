"""The sampling loop of EDLM (Algorithm 1): draw K candidates, choose one by energy, reveal some."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edlm_engine import graphs, ops
from edlm_engine.canvas import Tokens, check_canvas, compose_canvas, sequence_seeds
from edlm_engine.config import GenerationConfig
from edlm_engine.denoiser import Denoiser, device_of
from edlm_engine.energy import ARResidualEnergy, Energy, energy_function, on_grid
from edlm_engine.graphs import ModelGraphs, call_model
from edlm_engine.models.layers import cast_parameters
from edlm_engine.plan import CANDIDATES, RESAMPLE, RevealPlan, Step, plan_reveals, upload
from edlm_engine.schedule import LogLinearSchedule

_log = logging.getLogger(__name__)

# A nucleus this small holds the most probable token alone: no vocabulary reaches 1e12 tokens.
ARGMAX_TOP_P = 1e-12

Callback = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Generation:
    """What `Engine.generate` returns; tensors are on the denoiser's device.

    Energy steps count up per sequence: column s of `ess` and `log_z` is a sequence's own s-th one,
    NaN where it had fewer than S, the most of any sequence.
    """

    sequences: Tensor  # [B, L] int64
    texts: list[str] | None  # decoded sequences; None without a tokenizer
    seeds: Tensor  # [B] int64: given back as `seed`, they repeat the sequences
    nfe: Tensor  # [B] int64: denoiser evaluations
    energy_evaluations: Tensor  # [B] int64: candidates scored
    ess: Tensor  # [B, S] float32 in [1, K]: effective sample size (sum w)^2 / sum w^2
    log_z: Tensor  # [B, S] float32: log of the mean weight, Theorem 1's estimate of log Z


class Engine:
    """Samples from a denoiser, corrected by an energy if there is one.

    denoiser: see `edlm_engine.denoiser.Denoiser`; a `torch.nn.Module` should be in eval mode.
    energy: see `edlm_engine.energy.Energy`; None is plain MDLM.
    tokenizer: anything with `encode(text)` and `decode(ids)`; None works on tokens alone.
    schedule: a noise schedule, `LogLinearSchedule()` by default.
    cuda_graphs: on a CUDA device, call the models by CUDA graphs where they allow it (see
        `edlm_engine.graphs`); the graphs stay with the engine, and generations of several threads
        take turns. Nothing changes on other devices.

    Raises ValueError if the mask is outside the denoiser's vocabulary, or if the denoiser can draw
    tokens that the energy's model does not know.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        energy: Energy | None = None,
        tokenizer=None,
        schedule: LogLinearSchedule | None = None,
        *,
        cuda_graphs: bool = True,
    ):
        self.denoiser = denoiser
        self.energy = energy
        self.tokenizer = tokenizer
        self.schedule = schedule or LogLinearSchedule()
        self.cuda_graphs = cuda_graphs
        self._graphs: ModelGraphs | None = None
        vocab_size, mask_id = denoiser.vocab_size, denoiser.mask_id
        if not 0 <= mask_id < vocab_size:
            raise ValueError(f"mask_id must be in [0, {vocab_size}), got {mask_id}")
        known = getattr(energy, "vocab_size", vocab_size)
        largest = vocab_size - (2 if mask_id == vocab_size - 1 else 1)
        if largest >= known:
            raise ValueError(
                f"energy must know every token of the denoiser, 0 to {largest}, "
                f"got a vocabulary of {known}"
            )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        energy: str | Path | None = "default",
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        compile: bool = False,
        cuda_graphs: bool = True,
    ) -> Engine:
        """Load a denoiser with its tokenizer and energy; `path` None is the bundled model.

        energy: "ar" or "coar", the AR model beside the denoiser without and with carry-over; the
        folder of another AR model; or None, plain MDLM. "default" is "ar" for the bundled model and
        None for any other.

        dtype: of the weights. By default the transformer blocks are bfloat16 where the processor
        or GPU multiplies such numbers (else float32, and a log line says why) and the heads
        float32: no CPU library product of 16-bit operands returns logits that are not rounded to
        8 bits. `torch.bfloat16` makes the heads and so the logits bfloat16 too: a quarter less time
        for the bundled model with K = 4, more for larger vocabularies, and an error of 0.006 nats
        (root mean square) in a token's log-probability instead of 0.005 from the blocks alone.

        compile: pass the backbones through `torch.compile`; the first steps then take a while.
            CUDA graphs capture what it makes of them.
        cuda_graphs: see `Engine`.

        A denoiser without time conditioning is folded (see `FoldedDiT`). Raises FileNotFoundError
        and ValueError as `edlm_engine.loaders.load_bundle` does.
        """
        from edlm_engine.loaders import load_bundle

        if energy == "nce":
            raise ValueError(
                'energy must be "ar", "coar", the folder of an AR model or None, got "nce"'
            )
        bundle = load_bundle(path, energy=energy, device=device, dtype=torch.float32)
        denoiser, ar = bundle.denoiser, bundle.ar
        if not denoiser.config.time_conditioning:
            denoiser = denoiser.folded()
        for model in (denoiser, ar):
            if model is None:
                continue
            cast_parameters(model, dtype) if dtype else model.blocks_to(fast_dtype(device))
            for name in ("hidden", "hidden_after_prefix") if compile else ():
                if hasattr(model, name):
                    setattr(model, name, torch.compile(getattr(model, name), dynamic=True))
        residual = None if ar is None else ARResidualEnergy(ar, carry_over=energy == "coar")
        return cls(denoiser, residual, bundle.tokenizer, cuda_graphs=cuda_graphs)

    def generate(
        self,
        batch_size: int = 1,
        *,
        config: GenerationConfig | None = None,
        seed: int | Sequence[int] | Tensor = 0,
        prompt: Tokens | None = None,
        suffix: Tokens | None = None,
        canvas: Tensor | None = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Generation:
        """Generate `batch_size` sequences.

        seed: an int (sequence b gets its own stream of it) or one int per sequence: such a sequence
            is the same alone, in any batch and with any number of threads, as far as the models'
            own arithmetic is (see `GenerationConfig.batch_invariant`).
        prompt, suffix: known tokens at the start and the end: text, token ids, or one of these per
            sequence (lengths may differ). They never change and count in no `log_q`.
        canvas: [B, L] int64 on any device, the mask token where free; instead of the other two.
        callback: called as callback(iteration, iterations, xt) after each iteration, counted from
            1, with the current tokens [B, L], the mask where still hidden; not to be modified.
        progress: show a progress bar with the time left and the model evaluations.

        Raises ValueError for arguments that do not fit, and RuntimeError naming the row for logits
        or weights that are NaN, +inf, or nothing but -inf: at once on the CPU, at the end on CUDA.
        """
        config = config or GenerationConfig()
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        xt = self._first_xt(batch_size, self._length(config), prompt, suffix, canvas)
        seeds = sequence_seeds(seed, batch_size)
        with_energy = self.energy is not None and config.num_candidates > 1
        plan = plan_reveals(
            seeds,
            xt == self.denoiser.mask_id,
            self.schedule,
            config.steps,
            config.energy_times if with_energy else None,
            energy_at_fill=config.final == "sample",
        )
        threads = one_thread() if config.batch_invariant else nullcontext()
        with graphs.using(self._model_graphs()):
            with torch.inference_mode(), ops.one_head_workspace(), threads:
                run = _Run(self, config, plan, xt, seeds)
                for iteration in _track(plan, progress):
                    for step in plan.steps(iteration, one_by_one=config.batch_invariant):
                        run.advance(step)
                    if callback:
                        callback(iteration + 1, plan.iterations, run.xt)
            # Waits for the device: only then may another thread, or stream, use the graphs.
            return run.result()

    def __getstate__(self) -> dict:
        return {**vars(self), "_graphs": None}  # what a copy or another process cannot have

    def _model_graphs(self) -> ModelGraphs | None:
        """The graphs of the denoiser's device, if there and wanted."""
        device = device_of(self.denoiser)
        if not self.cuda_graphs:
            self._graphs = None
        elif self._graphs is None or self._graphs.device != device:
            capture = graphs.capture_on(device)
            self._graphs = capture and ModelGraphs(device, capture)
        return self._graphs

    def _length(self, config: GenerationConfig) -> int:
        length = config.length or self.denoiser.length
        longest = min(self.denoiser.length, getattr(self.energy, "length", self.denoiser.length))
        if length > longest:
            raise ValueError(f"length must be <= {longest}, the models' own, got {length}")
        return length

    def _first_xt(self, batch_size: int, length: int, prompt, suffix, canvas) -> Tensor:
        vocab_size = self.denoiser.vocab_size
        if canvas is None:
            return compose_canvas(
                prompt,
                suffix,
                batch_size,
                length,
                mask_id=self.denoiser.mask_id,
                vocab_size=vocab_size,
                tokenizer=self.tokenizer,
            )
        if prompt is not None or suffix is not None:
            raise ValueError("canvas must be given alone, got a prompt or suffix as well")
        return check_canvas(canvas, batch_size, length, vocab_size)


class _Run:
    """The state of one generation on the device, and the step that advances it."""

    def __init__(
        self, engine: Engine, config: GenerationConfig, plan: RevealPlan, xt: Tensor, seeds: Tensor
    ):
        self.engine = engine
        self.denoiser = engine.denoiser
        self.config = config
        self.plan = plan
        self.device = device_of(engine.denoiser)
        self.energy = None if engine.energy is None else energy_function(engine.energy)
        tokens, self.seeds = upload(self.device, xt.flatten(), seeds)
        self.xt = tokens.view(xt.shape)
        diagnostics = (len(xt), int(plan.energy_steps.max(initial=0)))
        self.ess = torch.full(diagnostics, torch.nan, device=self.device)
        self.log_z = self.ess.clone()
        self.x0 = self.xt.new_empty(len(xt), config.num_candidates, xt.shape[1])
        self.failures = torch.zeros(len(xt), dtype=torch.int64, device=self.device)

    def advance(self, step: Step) -> None:
        """One reverse step of the step's sequences: xt at t_{i-1} becomes xt at t_i."""
        step = step.to(self.device)
        xt = self.xt[step.rows]
        tokens, log_q = self._draw(xt, step)
        revealed = tokens[step.energy_draws :, 0]
        if len(step.energy_index):
            x0 = self._choose(xt, tokens, log_q, step)
            revealed = torch.cat([x0.flatten()[step.reveals[: step.energy_reveals]], revealed])
        xt.view(-1)[step.reveals] = revealed
        self.xt[step.rows] = xt

    def _draw(self, xt: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Draws at the step's positions: tokens [R, K], log_q (of no use at the last fills)."""
        row, position = step.draws // xt.shape[1], step.draws % xt.shape[1]
        keys = ops.stream_keys(self.seeds[step.rows][row], CANDIDATES, step.numbers[row], position)
        values = self._values(xt, step.sigmas.float(), step.draws)
        # Candidate 0 does not depend on K, so sequences with and without the energy share a call.
        candidates = self.config.num_candidates if len(step.energy_index) else 1
        cut = len(keys) - (step.fill_draws if self.config.final == "argmax" else 0)
        tokens, log_q = self._sample(values[:cut], keys[:cut], candidates, self.config.top_p)
        if cut < len(keys):
            fill, _ = self._sample(values[cut:], keys[cut:], candidates, ARGMAX_TOP_P)
            tokens = torch.cat([tokens, fill])
        self._note_failures(step.rows[row], tokens[:, 0])
        return tokens.clamp(min=0), log_q

    def _values(self, xt: Tensor, sigma: Tensor, draws: Tensor) -> Tensor:
        """At the drawn positions, hidden states [R, D], or logits [R, V] without a head."""
        name = "hidden" if self._has_head else "logits"
        values = call_model(self.denoiser, name, xt, sigma)
        width = values.shape[-1] if self._has_head else self.denoiser.vocab_size
        if values.shape != (*xt.shape, width):
            raise ValueError(
                f"the denoiser's {name} must have shape {[*xt.shape, width]}, "
                f"got {list(values.shape)}"
            )
        values = values.flatten(0, 1)
        return values if len(draws) == len(values) else values[draws]

    @property
    def _has_head(self) -> bool:
        return hasattr(self.denoiser, "hidden")

    def _sample(
        self, values: Tensor, keys: Tensor, candidates: int, top_p: float
    ) -> tuple[Tensor, Tensor]:
        options = {
            "forbidden_id": self.denoiser.mask_id,
            "temperature": self.config.temperature,
            "top_p": top_p,
        }
        if not self._has_head:
            return ops.sample_candidates(values, keys, candidates, **options)
        weight, bias = self.denoiser.head
        return ops.head_sample_candidates(values, weight, keys, candidates, bias=bias, **options)

    def _choose(self, xt: Tensor, tokens: Tensor, log_q: Tensor, step: Step) -> Tensor:
        """The chosen candidate x0 [E, L] of each of the first E sequences."""
        sequences, candidates = len(step.energy_index), self.config.num_candidates
        rows, numbers = step.rows[:sequences], step.numbers[:sequences]
        xt, tokens, log_q = xt[:sequences], tokens[: step.energy_draws], log_q[: step.energy_draws]
        draws = step.draws[: step.energy_draws]
        row, position = draws // xt.shape[1], draws % xt.shape[1]
        x0 = self.x0[:sequences].copy_(xt[:, None])
        x0[row, :, position] = tokens
        unscored = position < getattr(self.engine.energy, "first_position", 0)
        log_q = on_grid(log_q).masked_fill(unscored[:, None], 0)
        log_q = log_q.new_zeros(sequences, candidates).index_add_(0, row, log_q).float()
        times = step.times[:sequences].float()
        energy = self.energy(x0, xt, log_q, times, masked=step.masked)
        if energy.shape != log_q.shape:
            raise ValueError(
                f"the energy must return shape {list(log_q.shape)}, got {list(energy.shape)}"
            )
        log_weights = -energy.float() / self.config.energy_temperature
        keys = ops.stream_keys(self.seeds[rows], RESAMPLE, numbers)
        choice, ess, log_z = ops.resample(log_weights, keys)
        self.ess[rows, step.energy_index] = ess
        self.log_z[rows, step.energy_index] = log_z
        self._note_failures(rows, choice)
        return x0[torch.arange(sequences, device=self.device), choice.clamp(min=0)]

    def _note_failures(self, rows: Tensor, choices: Tensor) -> None:
        # On CUDA a bad row ends as choice -1. No model may see that as a token, and asking the
        # device here would stall it: callers clamp it to 0, and the end of the run reports it.
        self.failures.index_add_(0, rows, (choices < 0).long())

    def result(self) -> Generation:
        failed = self.failures.nonzero().flatten().tolist()
        if failed:
            raise RuntimeError(
                "logits or log_weights held NaN, +inf or nothing but -inf "
                f"in {len(failed)} of {len(self.xt)} sequences, the first of them {failed[0]}"
            )
        tokenizer = self.engine.tokenizer
        texts = None if tokenizer is None else [tokenizer.decode(row) for row in self.xt.tolist()]
        evaluations = torch.from_numpy(self.plan.energy_steps) * self.config.num_candidates
        # Copies, because tensors made in inference mode could not be changed in place by the user.
        return Generation(
            sequences=self.xt.clone(),
            texts=texts,
            seeds=self.seeds.clone(),
            nfe=torch.from_numpy(self.plan.nfe).to(self.device),
            energy_evaluations=evaluations.to(self.device),
            ess=self.ess.clone(),
            log_z=self.log_z.clone(),
        )


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies such matrices in hardware, else float32, logged."""
    if torch.device(device).type == "cuda":
        fast, missing = torch.cuda.is_bf16_supported(including_emulation=False), "bfloat16"
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        missing = "AVX-512 BF16 or AMX"
    if not fast:
        _log.info("float32 blocks: %s has no %s", device, missing)
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the body on one CPU thread of torch.

    A matrix product may be split differently among threads and then add up in another order: a
    float32 [7, 256] x [256, 4096] product changes in its last bits between one thread and two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _track(plan: RevealPlan, progress: bool) -> Iterator[int]:
    """The iterations of a plan, with a progress bar if wanted."""
    if not progress:
        yield from range(plan.iterations)
        return
    from tqdm.auto import tqdm

    with tqdm(total=plan.iterations, desc="generate", unit="step") as bar:
        for iteration in range(plan.iterations):
            yield iteration
            done = plan.nfe.clip(max=iteration + 1).sum()
            bar.set_postfix(nfe=f"{done}/{plan.nfe.sum()}", refresh=False)
            bar.update()
