"""What a user holds: a denoiser, its energy and tokenizer, and the generations of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from edlm_engine.checkpoints.bundle import load_for_sampling
from edlm_engine.checkpoints.hub import Source
from edlm_engine.checkpoints.hub_tokenizer import load_tokenizer
from edlm_engine.checkpoints.save import save_pair
from edlm_engine.energies.nce import NCEEnergy
from edlm_engine.energies.protocol import Energy
from edlm_engine.energies.residual import ARResidualEnergy
from edlm_engine.execution import capture
from edlm_engine.execution.devices import require_device
from edlm_engine.execution.dtype import as_dtype
from edlm_engine.execution.graphs import ModelGraphs
from edlm_engine.execution.threads import one_thread
from edlm_engine.models.denoiser import Denoiser, device_of
from edlm_engine.sampling.canvas import Chat, Tokens, drawn_seeds, sequence_seeds
from edlm_engine.sampling.cohort import Cohort
from edlm_engine.sampling.config import GenerationConfig, as_config
from edlm_engine.sampling.each import generate_requests
from edlm_engine.sampling.generation import Generation
from edlm_engine.sampling.request import Request, as_request, first_xt
from edlm_engine.sampling.schedule import LogLinearSchedule
from edlm_engine.sampling.session import Session
from edlm_engine.sampling.streaming import Stream

Callback = Callable[[int, int, Tensor], Any]


class Engine:
    """Samples from a denoiser, corrected by an energy if there is one.

    denoiser: see `edlm_engine.Denoiser`; a `torch.nn.Module` should be in eval mode.
    energy: see `edlm_engine.Energy`; None is plain MDLM.
    tokenizer: anything with `encode(text)` and `decode(ids)`; None works on tokens alone.
    schedule: a noise schedule, `LogLinearSchedule()` by default.
    cuda_graphs: on a CUDA device, call the models by CUDA graphs where they allow it (see
        `edlm_engine.execution.graphs`); the graphs stay with the engine, and generations of several
        threads take turns. Nothing changes on other devices.

    Raises TypeError for a denoiser without what the protocol asks, and ValueError if its vocabulary
    lacks the mask or holds nothing else, or if the energy's vocabulary is neither the denoiser's
    nor that without a mask in its last row.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        energy: Energy | Callable[..., Tensor] | None = None,
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
        _check_models(denoiser, energy)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        energy: str | Path | None = "default",
        base: str | Path | None = None,
        device: torch.device | str = "cpu",
        device_map: str | dict[str, Any] | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        tokenizer: str | Path | None = None,
        weights: Literal["ema", "raw"] = "ema",
        mask_id: int | None = None,
        compile: bool = False,
        cuda_graphs: bool = True,
    ) -> Engine:
        """Load a denoiser with its tokenizer and energy.

        path: a folder, file or hub id in any of the formats of `edlm_engine.checkpoints.formats`;
        None, the small bundled model; or "smollm2", SmolLM2-135M adapted to masked diffusion (the
        change is bundled, its base weights are looked for on this machine). An adapted folder of
        one's own (`edlm train adapt`) shares its base in the same way.

        energy: "ar" or "coar", the AR model beside the denoiser without and with carry-over; "nce",
        the learned energy beside it or in the same checkpoint of EDLM; the folder, file or hub id
        of another of either; or None, plain MDLM. "default" is "ar" for the bundled and adapted
        models and None for any other.

        subfolder, revision, local_files_only, cache_dir: as in huggingface_hub, of `path`; the
        energy is looked for under the last two. HF_HUB_OFFLINE is respected.

        tokenizer: the folder or hub id of one, for a model that has none beside it; by default that
        of the energy.

        weights: of a training checkpoint, the averaged ("ema") or the "raw" ones. mask_id: the mask
        token of a model that does not name one.

        base: for an adapted model, the folder or GGUF file of its base, looked for first.

        device_map: of an energy that is a causal LM of transformers, as there (it needs
        accelerate): how its blocks are spread over devices. All of it is read in the dtype of its
        blocks; its output layer, and the denoiser, are on `device`. Other models refuse it.

        dtype (or torch_dtype): of the weights. By default the transformer blocks are bfloat16 where
        the processor or GPU multiplies such numbers (else float32, and a log line says why) and the
        heads float32: no CPU library product of 16-bit operands returns logits that are not rounded
        to 8 bits. `torch.bfloat16` makes the heads and so the logits bfloat16 too: a quarter less
        time for the bundled model with K = 4, more for larger vocabularies, and an error of 0.006
        nats (root mean square) in a token's log-probability instead of 0.005 from the blocks alone.

        compile: pass the backbones through `torch.compile`; the first steps then take a while.
            CUDA graphs capture what it makes of them.
        cuda_graphs: see `Engine`.

        A denoiser without time conditioning is folded (see `FoldedDiT`). Raises FileNotFoundError
        and ValueError as `edlm_engine.checkpoints.bundle.load_for_sampling` does.
        """
        device = require_device(device)
        source = Source(
            subfolder=subfolder,
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
        )
        bundle = load_for_sampling(
            path,
            energy=energy,
            base=base,
            device=device,
            device_map=device_map,
            dtype=as_dtype(torch_dtype if dtype is None else dtype),
            source=source,
            weights=weights,
            mask_id=mask_id,
        )
        denoiser: Any = bundle.denoiser
        ar, nce = bundle.ar, bundle.nce
        for model in (denoiser, ar, nce):
            for name in ("hidden", "hidden_after_prefix", "energies") if compile else ():
                if hasattr(model, name):
                    setattr(model, name, torch.compile(getattr(model, name), dynamic=True))
        scores: Energy | None = None
        if ar is not None:
            scores = ARResidualEnergy(ar, carry_over=energy == "coar")
        elif nce is not None:
            scores = NCEEnergy(nce)
        read = bundle.tokenizer
        if tokenizer is not None:
            read = load_tokenizer(tokenizer, replace(source, subfolder=None, revision=None))
        return cls(denoiser, scores, read, cuda_graphs=cuda_graphs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write denoiser, energy and tokenizer as `from_pretrained` reads them.

        A folded denoiser is written unfolded. Raises ValueError, by name, for models that have no
        layout of ours and energies without a model, before anything is written.
        """
        model = getattr(self.energy, "model", None)
        if self.energy is not None and model is None:
            raise ValueError(f"energy has no files to write, a {type(self.energy).__name__}")
        save_pair(folder, self.denoiser, model, self.tokenizer)

    def generate(
        self,
        batch_size: int = 1,
        *,
        config: GenerationConfig | Mapping[str, Any] | None = None,
        seed: int | Sequence[int] | Tensor = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        prompt: Tokens | Chat | Sequence[Chat] | None = None,
        suffix: Tokens | None = None,
        canvas: Tensor | None = None,
        callback: Callback | None = None,
        streamer: Any = None,
        progress: bool = False,
    ) -> Generation:
        """Generate `batch_size` sequences.

        config: how to sample; a dict of some of its fields will do.
        seed: an int (sequence b gets its own stream of it) or one int per sequence: such a sequence
            is the same alone, in any batch and with any number of threads, as far as the models'
            own arithmetic is (see `GenerationConfig.batch_invariant`).
        generator: instead of a seed, a torch.Generator or one per sequence, from which the seeds
            are drawn: one of 64 bits for each sequence. Generators advance.
        prompt, suffix: known tokens at the start and the end: text, token ids, or one of these per
            sequence (lengths may differ). They never change and count in no `log_q`. A prompt may
            also be a chat, a list of messages {"role": ..., "content": ...}, or one chat per
            sequence: the tokenizer's own chat template renders it up to where the answer begins.
        canvas: [B, L] int64 on any device, the mask token where free; instead of the other two.
        callback: called as callback(iteration, iterations, xt) after each iteration, counted from
            1 (there are at most `iterations`), with the current tokens [B, L], the mask where still
            hidden: one buffer, the same at every call. Clone it to keep it; it is not to be
            modified. Where it returns False the generation ends, hidden positions still masked.
        streamer: for a batch of one, a streamer of transformers, or anything with `put(tokens)` and
            `end()`, is given the prompt and then the text as it appears (see
            `edlm_engine.sampling.streaming.Stream`).
        progress: show a progress bar with the time left and the model evaluations.

        Raises TypeError and ValueError for arguments that do not fit; MemoryError, before anything
        is computed, if the tokens, candidates, times and outputs of the denoiser that must exist at
        one time are more than the memory left on the device; and RuntimeError naming the row for
        logits or weights that are NaN, +inf, or nothing but -inf: at once on the CPU, at the end on
        CUDA.
        """
        config = as_config(config)
        if isinstance(batch_size, bool) or not isinstance(batch_size, Integral):
            raise TypeError(f"batch_size must be of type int, got {batch_size!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if streamer is not None and batch_size != 1:
            raise ValueError(f"batch_size must be 1 with a streamer, got {batch_size}")
        xt = first_xt(self, batch_size, config, prompt, suffix, canvas)
        if generator is None:
            seeds = sequence_seeds(seed, batch_size)
        elif isinstance(seed, Integral) and seed == 0:
            seeds = drawn_seeds(generator, batch_size)
        else:
            raise ValueError("generator must be given without a seed, got both")
        session = Session(self)
        session.start(config, xt, seeds)
        with ExitStack() as stack:
            stream = None
            if streamer is not None:
                stream = Stream(streamer, xt, self.denoiser.mask_id, config)
                stack.enter_context(closing(stream))
            # The result waits for the device: only then may another thread, or stream, use graphs.
            stack.enter_context(session.turn())
            stack.enter_context(one_thread() if config.batch_invariant else nullcontext())
            cohort = session.only_cohort()
            iterations = cohort.course.iterations
            with closing(_track(cohort, progress)) as track:  # an error ends its bar first
                for iteration in track:
                    if stream is not None:
                        stream.step(cohort.run.xt)
                    if callback and callback(iteration, iterations, cohort.run.xt) is False:
                        break
            generation = cohort.run.result(self.tokenizer)
            if stream is not None:
                stream.finish(generation.sequences)
            return generation

    def generate_each(
        self,
        requests: Iterable[Request | Mapping[str, Any]],
        *,
        batch_size: int | None = None,
    ) -> list[Generation]:
        """A generation of one sequence for each request, in their order.

        Each has its own length, configuration, seed and known tokens, and is what `generate` gives
        alone; those of one length share model calls (see `Session`).

        batch_size: how many run at a time, the next beginning as one ends; None is all of them.

        Raises what `generate` raises for the first request that does not fit, or fails.
        """
        checked = [as_request(request) for request in requests]
        for request in checked:
            as_config(request.config)
        generations: dict[int, Generation] = {}
        for number, result in generate_requests(self, checked, batch_size):
            if isinstance(result, Exception):
                raise result
            generations[number] = result
        return [generations[number] for number in sorted(generations)]

    def session(
        self, *, max_sequences: int | None = None, max_tokens: int | None = None
    ) -> Session:
        """Sample step by step: sequences may join at any step, each with its own configuration.

        max_sequences, max_tokens: how many sequences, and how many positions in all of them, wait
            or run at a time; a request beyond raises `SessionFull`.
        """
        return Session(self, max_sequences=max_sequences, max_tokens=max_tokens)

    def __getstate__(self) -> dict:
        return {**vars(self), "_graphs": None}  # what a copy or another process cannot have

    def model_graphs(self) -> ModelGraphs | None:
        """The graphs of the denoiser's device, if there and wanted."""
        device = device_of(self.denoiser)
        if not self.cuda_graphs:
            self._graphs = None
        elif self._graphs is None or self._graphs.device != device:
            on_device = capture.capture_on(device)
            self._graphs = None if on_device is None else ModelGraphs(device, on_device)
        return self._graphs


def _check_models(denoiser: Denoiser, energy: object) -> None:
    missing = [name for name in ("mask_id", "vocab_size", "length") if not hasattr(denoiser, name)]
    if not (
        hasattr(denoiser, "logits") or (hasattr(denoiser, "hidden") and hasattr(denoiser, "head"))
    ):
        missing.append("logits")
    if missing:
        raise TypeError(
            f"denoiser must have {', '.join(missing)}, got {type(denoiser).__name__}: wrap a "
            "function or module by CallableDenoiser(fn, mask_id=, vocab_size=, length=)"
        )
    for name in ("mask_id", "vocab_size", "length"):
        value = getattr(denoiser, name)
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"the denoiser's {name} must be of type int, got {value!r}")
    if not (energy is None or callable(energy) or hasattr(energy, "energy")):
        raise TypeError(f"energy must have a method energy, or be callable, got {energy!r}")
    vocab_size, mask_id = denoiser.vocab_size, denoiser.mask_id
    if vocab_size < 2:
        raise ValueError(f"vocab_size must be >= 2, the mask and a token to draw, got {vocab_size}")
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_id must be in [0, {vocab_size}), got {mask_id}")
    fitting = (vocab_size, vocab_size - 1) if mask_id == vocab_size - 1 else (vocab_size,)
    never = getattr(denoiser, "never_drawn", ())
    drawn = (i for i in reversed(range(vocab_size)) if i != mask_id and i not in never)
    last_drawn = next(drawn, -1)
    for part in getattr(energy, "parts", (energy,)):
        masked = getattr(part, "mask_id", mask_id)
        if masked != mask_id:
            raise ValueError(f"energy must have the denoiser's mask_id {mask_id}, got {masked}")
        known = getattr(part, "vocab_size", vocab_size)
        if known not in fitting and not (never and known > last_drawn):
            raise ValueError(
                f"energy must have the denoiser's vocabulary of {' or '.join(map(str, fitting))} "
                f"tokens, got one of {known}"
            )


def _track(cohort: Cohort, progress: bool) -> Generator[int, None, None]:
    """Takes a cohort's iterations, and counts them from 1; with a progress bar if wanted."""
    iteration = 0
    if not progress:
        while cohort.parts():
            cohort.take()
            yield (iteration := iteration + 1)
        return
    from tqdm.auto import tqdm

    with tqdm(total=cohort.course.iterations, desc="generate", unit="step") as bar:
        while cohort.parts():
            cohort.take()
            taken, most = (each.sum() for each in cohort.course.counts(cohort.run))
            bar.set_postfix(nfe=f"{taken}/{most}", refresh=False)
            bar.update()
            yield (iteration := iteration + 1)
