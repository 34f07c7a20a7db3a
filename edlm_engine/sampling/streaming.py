"""A text as it appears: tokens go to a streamer as soon as everything before them is revealed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edlm_engine.sampling.config import GenerationConfig


class Stream:
    """Feeds a streamer as transformers does: the prompt, then the tokens of the text.

    streamer: anything with `put(tokens)` and `end()`. The prompt comes as [1, P], later tokens as
    [n], int64 on the CPU; an EOS that ends the text, and what follows it, does not come. If it has
    a method `put_provisional`, that is given the whole canvas [L] after each step, the mask where
    hidden; `put_draft`, as `TextDiffusionStreamer` of transformers has it, what was not put yet.

    Where revealed tokens may still change (`GenerationConfig.keeps_revealed`), the text comes at
    the end. The host waits for the device in each step. `close` ends the stream, also after an
    error, so that no reader waits for ever.
    """

    def __init__(self, streamer: Any, first: Tensor, mask_id: int, config: GenerationConfig):
        missing = [name for name in ("put", "end") if not callable(getattr(streamer, name, None))]
        if missing:
            raise TypeError(
                f"streamer must have {' and '.join(missing)}, got {type(streamer).__name__}"
            )
        self.streamer, self.mask_id, self.config = streamer, mask_id, config
        self.known = (first[0] != mask_id).tolist()
        self.done = self.known.index(False) if False in self.known else len(self.known)
        streamer.put(first[:, : self.done].clone())

    def step(self, xt: Tensor) -> None:
        """What the present tokens [1, L] add to the text."""
        canvas = xt[0].cpu()
        if self.config.keeps_revealed:
            self._put(canvas)
        if hasattr(self.streamer, "put_draft") and self.done < len(canvas):
            self.streamer.put_draft(canvas[None, self.done :].clone())
        if hasattr(self.streamer, "put_provisional"):
            self.streamer.put_provisional(canvas.clone())

    def finish(self, sequences: Tensor) -> None:
        """The rest, of the finished [1, L]."""
        self._put(sequences[0].cpu())

    def close(self) -> None:
        self.streamer.end()

    def _put(self, canvas: Tensor) -> None:
        end, tokens = self.done, canvas.tolist()
        while end < len(tokens) and tokens[end] != self.mask_id and not self._ends(tokens, end):
            end += 1
        if end > self.done:
            self.streamer.put(canvas[self.done : end].clone())
            self.done = end

    def _ends(self, tokens: list[int], place: int) -> bool:
        return tokens[place] == self.config.eos_id and not self.known[place]
