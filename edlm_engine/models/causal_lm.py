"""Any causal language model of the transformers library as the scorer behind an AR energy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm_engine.models.kv_cache import KVCache, cache_length
from edlm_engine.models.layers import cast_parameters, predict_next, require_tokens, split_prefix
from edlm_engine.models.library_cache import (
    TRIED_LENGTH,
    library_arguments,
    require_whole_attention,
    try_steps,
)


class CausalLMScorer(nn.Module):
    """The interface of `AutoregressiveTransformer` around a transformers model.

    With `bos_id` that token is put in front and position 0 is scored; with None scoring starts at
    position 1. `forbidden_id` is a token left out of every distribution, the mask of a denoiser of
    the same vocabulary; -1 for none. The model must have a plain linear head on its last hidden
    state: one that scales or caps its logits is refused with ValueError, since its scores would be
    others.

    Not captured in CUDA graphs, since some of these models wait for the device: set `capturable` to
    True on the scorer of one that does not (see `edlm_engine.execution.graphs`).
    """

    model: Any  # a PreTrainedModel of transformers, which need not be installed

    def __init__(
        self,
        model: nn.Module,
        bos_id: int | None = None,
        forbidden_id: int = -1,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.bos_id = bos_id
        self.forbidden_id = forbidden_id
        self._steps_tried = 0  # of sequences of how many tokens
        if not self.head[0].is_meta:  # one to be looked at only
            self._require_plain_head()

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> CausalLMScorer:
        """Read a local folder or GGUF file; the BOS is the `bos_token_id` of its configuration.

        `dtype=None` keeps the stored one. No network and no remote code. Raises as
        `read_causal_lm` does.
        """
        model = read_causal_lm(directory, dtype=dtype)
        return cls(model.to(device), model.config.bos_token_id)

    @property
    def vocab_size(self) -> int:
        return len(self.head[0])

    @property
    def length(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def first_position(self) -> int:
        """First position whose token is scored: 0 with a BOS, else 1."""
        return 0 if self.bos_id is not None else 1

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """(weight [V, D], bias [V] or None): `logits = hidden @ weight.T + bias`."""
        linear = self.model.get_output_embeddings()
        return linear.weight, getattr(linear, "bias", None)

    def blocks_to(self, dtype: torch.dtype) -> CausalLMScorer:
        """Run all but the head in `dtype`; a head tied to the embedding gets its own weight."""
        linear = self.model.get_output_embeddings()
        linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
        cast_parameters(self.model.base_model, dtype)
        return self

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens [n, L] -> [n, L, D], where row l depends on tokens[:, :l] only.

        Without a BOS row 0 is zeros: nothing predicts the first token.
        """
        require_tokens(tokens, "tokens", self.length)
        return predict_next(self._states, tokens, self.bos_id)

    def hidden_after_prefix(self, tokens: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """`hidden` of tokens [b, K, L] that share their first `prefix` over K, by the KV cache.

        Returns the rows of those positions [b, prefix, D], computed once for all K, and the others
        [b, K, L - prefix, D]: up to rounding the values of `hidden`. `prefix` must lie between
        `first_position` + 1 and L - 1.
        """
        groups, candidates, _ = tokens.shape
        first = self.first_position
        known, rest = split_prefix(tokens, prefix, self.bos_id)
        first_part = self._run(known, use_cache=True)
        cache = first_part.past_key_values
        cache.batch_repeat_interleave(candidates)
        states = self._run(rest, past_key_values=cache, use_cache=True).last_hidden_state
        dtype = self.head[0].dtype
        known_states = first_part.last_hidden_state.to(tokens.device, dtype)
        before = F.pad(known_states, (0, 0, first, 0))
        return before, states.to(tokens.device, dtype).unflatten(0, (groups, candidates))

    def start_cache(self, rows: int, length: int | None = None) -> KVCache:
        """An empty cache for `hidden_step` on `rows` sequences of up to `length` tokens.

        `length=None` is the model's own. Raises ValueError for a model that cannot go on from a
        cache of sequences at places of their own, which the first call tries; one whose layers see
        a window cannot beyond that window.
        """
        length = cache_length(length, self.length)
        require_whole_attention(self.model.config, length)
        tried = min(length, TRIED_LENGTH)
        if tried > self._steps_tried:
            try_steps(self, tried)
            self._steps_tried = tried
        return KVCache(rows, length, self.bos_id, self.head[0].device)

    @torch.no_grad()
    def hidden_step(self, tokens: Tensor, cache: KVCache, start: Tensor, count: int) -> Tensor:
        """As `AutoregressiveTransformer.hidden_step`, in the model's own attention.

        The cache is handed to it as one of transformers' own, with positions and a mask.
        """
        require_tokens(tokens, "tokens", self.length)
        given, places = cache.begin(tokens, start, count)
        step = self._run(given, **library_arguments(self.model, places, cache))
        return step.last_hidden_state.to(tokens.device, self.head[0].dtype)

    def logits(self, tokens: Tensor) -> Tensor:
        """Raw logits [n, L, V]; row l predicts token l."""
        return F.linear(self.hidden(tokens), *self.head)

    forward = logits

    def _states(self, seen: Tensor) -> Tensor:
        states = self._run(seen, use_cache=False).last_hidden_state
        return states.to(seen.device, self.head[0].dtype)

    def _run(self, tokens: Tensor, **options: Any) -> Any:
        """The model without its head, which a device map may have put elsewhere than the tokens."""
        device = self.model.get_input_embeddings().weight.device
        if device.type != "meta":  # an embedding that is offloaded fetches its tokens itself
            tokens = tokens.to(device)
        return self.model.base_model(input_ids=tokens, **options)

    @torch.no_grad()
    def _require_plain_head(self) -> None:
        probe = torch.zeros(1, 2, dtype=torch.int64, device=self.head[0].device)
        wanted = self.model(input_ids=probe, use_cache=False).logits
        got = F.linear(self._states(probe), *self.head)
        if wanted.shape != got.shape or not torch.allclose(wanted, got, rtol=1e-2, atol=1e-2):
            name = type(self.model).__name__
            raise ValueError(f"{name} does more to its logits than a linear head: not supported")


def read_causal_lm(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> Any:
    """A causal language model of transformers from a folder, or from a GGUF file, on the CPU.

    A folder holds a config.json with safetensors beside it, or one *.gguf file. Strict: every
    weight of the model is in the file and no other. No network, no pickles, no remote code.
    With a `device_map` it lies where transformers then puts it.

    Raises:
        ImportError: transformers, or gguf for such a file, or accelerate for a device map, is not
            installed.
        FileNotFoundError: no such file or folder.
        ValueError: damaged files; missing, unexpected or wrongly shaped weights, by name.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ImportError(
            f"{path} is a transformers model: pip install 'edlm_engine[hub]'"
        ) from error
    spread = ""
    if device_map is not None:
        spread = f", or device_map {device_map!r} does not fit it"
        try:
            import accelerate  # noqa: F401  which transformers needs for it
        except ImportError as error:
            raise ImportError("device_map needs accelerate: pip install accelerate") from error
    folder, gguf = locate_gguf(path)
    source: dict[str, Any] = {"gguf_file": gguf} if gguf else {"use_safetensors": True}
    with quietly():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                dtype=dtype or "auto",
                device_map=device_map,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to be told of them; they are refused below
                **source,
            )
        except ImportError:
            raise
        except Exception as error:  # the libraries below raise plain Exceptions for damaged files
            raise ValueError(
                f"{path} is damaged or not a causal language model{spread}: {error}"
            ) from error
    faults = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "wrongly shaped": report["mismatched_keys"],
    }
    named = [f"{what} weights {sorted(map(str, keys))}" for what, keys in faults.items() if keys]
    if named or report["error_msgs"]:
        raise ValueError(f"{path} has {'; '.join([*named, *report['error_msgs']])}")
    return model


def locate_gguf(path: str | Path) -> tuple[Path, str | None]:
    """(folder, name of its GGUF file or None) of a folder or of a GGUF file."""
    path = Path(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"{path} must be a folder or a .gguf file")
        return path.parent, path.name
    if not path.is_dir():
        raise FileNotFoundError(f"no model at {path}")
    files = sorted(path.glob("*.gguf"))
    if (path / "config.json").is_file() or not files:
        return path, None
    if len(files) > 1:
        raise ValueError(f"{path} must hold one GGUF file, it holds {[f.name for f in files]}")
    return path, files[0].name


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's progress bar and its table of faults: those become one error."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
