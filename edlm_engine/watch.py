"""How `edlm generate` shows a text as it appears: in place on a terminal, or word by word."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from edlm_engine.sampling.canvas import sequence_seeds
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.request import Request

if TYPE_CHECKING:
    from edlm_engine.engine import Engine
    from edlm_engine.sampling.cohort import Progress
    from edlm_engine.sampling.generation import Generation

HIDDEN, NEW, OLD = "dim", "bold bright_green", ""
MASK_SIGN = " ·"
PARTIAL = "\N{REPLACEMENT CHARACTER}"  # how tokenizers write bytes that are no character yet
# A text may hold any byte, but is not to steer the terminal.
CONTROLS = {code: PARTIAL for code in range(32) if chr(code) not in "\n\t"}
Decode = Callable[[Sequence[int]], str]


def can_show() -> bool:
    """Whether the output is a terminal on which text may change in place."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def show(
    engine: Engine,
    num: int,
    *,
    seed: int,
    config: GenerationConfig,
    prompt: str | None = None,
    suffix: str | None = None,
) -> list[Generation]:
    """Generate the sequences of `engine.generate(num, ...)`, shown on the terminal meanwhile."""
    session = engine.session()
    found: dict[int, Generation] = {}
    handles = [
        session.add(Request(config, seed=[own], prompt=prompt, suffix=suffix))
        for own in sequence_seeds(seed, num).tolist()
    ]
    frames = {handle: Frame(_decoder(engine), engine.denoiser.mask_id) for handle in handles}
    console = Console(highlight=False)
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            for done in session.finished():
                if done.error is not None:
                    raise done.error
                assert done.generation is not None
                found[done.handle] = done.generation
                frames[done.handle].finish(done.generation)
            for handle in handles:
                if handle not in found:
                    frames[handle].update(session.progress(handle))
            titles = (f"{number} of {num}" for number in range(1, num + 1))
            shown = [frames[h].rendered(title) for h, title in zip(handles, titles, strict=True)]
            live.update(Group(*shown), refresh=True)
            if len(found) == num:
                break
            session.step()
    return [found[handle] for handle in handles]


class Frame:
    """What is shown of a sequence: where it is, and its tokens."""

    def __init__(self, decode: Decode, mask_id: int):
        self.decode, self.mask_id = decode, mask_id
        self.before: list[int] = []
        self.tokens: list[int] = []
        self.note = ""

    def update(self, progress: Progress) -> None:
        """The state after another step."""
        self.before, self.tokens = self.tokens, progress.xt.tolist()
        steps = f"step {progress.steps} of {progress.most_steps}"
        self._note(steps, progress.nfe, float(progress.ess))

    def finish(self, generation: Generation) -> None:
        """The sequence as it was generated."""
        self.before, self.tokens = self.tokens, generation.sequences[0].tolist()
        ess = generation.ess[0]
        last = ess[~ess.isnan()][-1:].tolist()
        self._note("done", int(generation.nfe[0]), *last)

    def _note(self, steps: str, nfe: int, ess: float = math.nan) -> None:
        self.note = f"{steps}, {nfe} denoiser evaluations"
        self.note += "" if math.isnan(ess) else f", ESS {ess:.2f}"

    def rendered(self, title: str) -> RenderableType:
        """The state as a line of facts and the text."""
        return Text.assemble((f"--- {title}: {self.note}\n", "dim"), self._text())

    def _text(self) -> Text:
        """Masks as dots, tokens of the last step bright."""
        text = Text()
        before = self.before or self.tokens
        styles = [
            HIDDEN if token == self.mask_id else OLD if token == old else NEW
            for token, old in zip(self.tokens, before, strict=True)
        ]
        styled = zip(self.tokens, styles, strict=True)
        for hidden, run in groupby(styled, key=lambda each: each[1] == HIDDEN):
            tokens = list(run)
            if hidden:
                text.append(MASK_SIGN * len(tokens), HIDDEN)
                continue
            for piece, style in pieces(self.decode, tokens):
                text.append(piece.translate(CONTROLS), style)
        return text


def pieces(decode: Decode, styled: Iterable[tuple[int, str]]) -> Iterable[tuple[str, str]]:
    """(text, style) of adjacent tokens with a style each, whose text may depend on those before.

    A character of several tokens has the style of its last one.
    """
    runs = [(style, [t for t, _ in run]) for style, run in groupby(styled, lambda each: each[1])]
    so_far: list[int] = []
    shown = ""
    for number, (style, own) in enumerate(runs, start=1):
        so_far += own
        whole = decode(so_far) if number == len(runs) else decode(so_far).rstrip(PARTIAL)
        yield (whole[len(shown) :] if whole.startswith(shown) else decode(own)), style
        shown = whole


def stream(engine: Engine, *, seed: int, progress: bool, **given: Any) -> None:
    """Generate one sequence, printed as it comes."""
    streamer = Words(_decoder(engine), sys.stdout)
    engine.generate(1, seed=seed, progress=progress, streamer=streamer, **given)


class Words:
    """A streamer that prints words, flushed; the last one waits, for tokens may complete it."""

    def __init__(self, decode: Decode, out: TextIO):
        self.decode, self.out = decode, out
        self.tokens: list[int] = []
        self.printed = 0

    def put(self, tokens: Any) -> None:
        """Tokens [n] or [1, n] that follow."""
        self.tokens += tokens.flatten().tolist()
        text = self.decode(self.tokens)
        self._print(text[: max(text.rfind(" "), text.rfind("\n")) + 1])

    def end(self) -> None:
        """Print what is left."""
        self._print(self.decode(self.tokens))
        print(file=self.out, flush=True)

    def _print(self, text: str) -> None:
        if len(text) > self.printed:
            print(text[self.printed :], end="", file=self.out, flush=True)
            self.printed = len(text)


def _decoder(engine: Engine) -> Decode:
    if engine.tokenizer is None:
        return lambda tokens: "".join(f"{token} " for token in tokens)
    return engine.tokenizer.decode
