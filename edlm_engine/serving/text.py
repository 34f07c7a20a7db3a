"""What of a sequence is text already: committed, never to change, up to a stop or an EOS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

PARTIAL = "\N{REPLACEMENT CHARACTER}"  # how tokenizers write bytes that are no character yet
Decode = Callable[[Sequence[int]], str]


def decoder(tokenizer: Any) -> Decode:
    """Ids to text; without a tokenizer, the ids themselves, a space after each."""
    if tokenizer is None:
        return lambda ids: "".join(f"{i} " for i in ids)
    return tokenizer.decode


class Text:
    """The text of one sequence, as it becomes certain from left to right.

    It begins after the prompt and ends before the suffix; before the first EOS that was generated,
    if `eos_id` is given; and before the first of the strings `stop`. `update` is told the tokens
    after each step and says what text they add. Where revealed tokens may still change
    (`keeps_revealed` False) there is none until the last.
    """

    def __init__(
        self,
        decode: Decode,
        canvas: Sequence[int],
        *,
        mask_id: int,
        prompt: int,
        suffix: int,
        eos_id: int | None = None,
        stop: Sequence[str] = (),
        keeps_revealed: bool = True,
    ):
        self.decode, self.mask_id, self.eos_id = decode, mask_id, eos_id
        self.begin, self.end = prompt, len(canvas) - suffix
        self.known = [token != mask_id for token in canvas]
        self.stop, self.keeps_revealed = stop, keeps_revealed
        self.tokens: list[int] = []  # committed
        self.text = ""  # given
        self.finish_reason: str | None = None
        self.cut = False  # by a string of `stop`
        self._before = list(canvas[:prompt])
        self._shown = len(decode(self._before))
        self._ends: list[int] = []  # of the tokens, in the text
        self._told = 0  # tokens that `settled` gave

    def update(self, canvas: Sequence[int], *, last: bool = False) -> str:
        """The text that these tokens [L] add; nothing once `finish_reason` is there."""
        if self.finish_reason is not None or not (last or self.keeps_revealed):
            return ""
        ended = self._commit(canvas)
        whole = self._decoded()
        cuts = [place for place in map(whole.find, self.stop) if place >= 0]
        if cuts:
            whole, self.finish_reason, self.cut = whole[: min(cuts)], "stop", True
            self._drop(whole)
        elif ended:
            self.finish_reason = "stop"
        elif last or self.begin + len(self.tokens) == self.end:
            self.finish_reason = "length"
        else:
            whole = self._without_beginnings(whole.rstrip(PARTIAL))
        added = whole[len(self.text) :]
        self.text += added
        return added

    def provisional(self, canvas: Sequence[int]) -> list[str | int]:
        """What follows the committed tokens: texts, and between them how many masks there are."""
        rest = canvas[self.begin + len(self.tokens) : self.end]
        runs = groupby(rest, key=lambda token: token == self.mask_id)
        return [len(list(run)) if hidden else self.decode(list(run)) for hidden, run in runs]

    @property
    def prompt(self) -> str:
        """What comes before it."""
        return self.decode(self._before)

    def settled(self) -> list[tuple[str, int]]:
        """The tokens whose text was given since the last call: each one's text, and its place [L].

        A character of several tokens belongs to the last of them.
        """
        while len(self._ends) < len(self.tokens):
            size = len(self._decoded(len(self._ends) + 1).rstrip(PARTIAL))
            self._ends.append(max(size, *self._ends[-1:], 0))
        ended, found = self.finish_reason is not None, []
        while self._told < len(self.tokens):
            start = min(self._ends[self._told - 1] if self._told else 0, len(self.text))
            stop = self._ends[self._told]
            if ended:
                last = self._told == len(self.tokens) - 1
                stop = len(self.text) if last else min(stop, len(self.text))
            elif stop > len(self.text):
                break
            found.append((self.text[start:stop], self.begin + self._told))
            self._told += 1
        return found

    def _commit(self, canvas: Sequence[int]) -> bool:
        """Take what has no mask before it; whether an EOS was met."""
        place = self.begin + len(self.tokens)
        while place < self.end and canvas[place] != self.mask_id:
            if canvas[place] == self.eos_id and not self.known[place]:
                return True
            self.tokens.append(canvas[place])
            place += 1
        return False

    def _decoded(self, count: int | None = None) -> str:
        # With what comes before: some tokenizers drop a space at the start of a text.
        return self.decode(self._before + self.tokens[:count])[self._shown :]

    def _drop(self, text: str) -> None:
        """Keep only the tokens that the text needs."""
        low, high = 0, len(self.tokens)
        while low < high:
            middle = (low + high) // 2
            if len(self._decoded(middle).rstrip(PARTIAL)) >= len(text):
                high = middle
            else:
                low = middle + 1
        del self.tokens[low:], self._ends[low:]

    def _without_beginnings(self, text: str) -> str:
        """Without an end that may become a stop string."""
        held = max(
            (n for each in self.stop for n in range(1, len(each)) if text.endswith(each[:n])),
            default=0,
        )
        return text[: len(text) - held]
