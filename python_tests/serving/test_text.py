"""What is text already, from the tokens of each step."""

import pytest
from letters import MASK, Letters

from edlm_engine.serving.text import PARTIAL, Text

LETTERS = Letters()


def tokens(text):
    """Of letters, `#` where hidden."""
    return LETTERS.encode(text)


def text_of(canvas, **options):
    return Text(
        LETTERS.decode, tokens(canvas), mask_id=MASK, **{"prompt": 2, "suffix": 1, **options}
    )


def test_what_has_no_gap_before_it_is_given():
    text = text_of("ab####x")
    assert text.update(tokens("ab#d##x")) == "" and text.finish_reason is None
    assert text.provisional(tokens("ab#d##x")) == [1, "d", 2]
    assert text.update(tokens("abcd##x")) == "cd"
    assert text.provisional(tokens("abcd##x")) == [2]
    assert text.settled() == [("c", 2), ("d", 3)]
    assert text.update(tokens("abcdefx")) == "ef" and text.finish_reason == "length"
    assert text.settled() == [("e", 4), ("f", 5)] and text.text == "cdef"
    assert text.update(tokens("abcdefx"), last=True) == ""


def test_what_may_become_a_stop_is_held_back():
    text = text_of("ab######x", stop=["fgh", "q"])
    assert text.update(tokens("abcdef##x")) == "cde" and text.settled() == [
        ("c", 2),
        ("d", 3),
        ("e", 4),
    ]
    assert text.update(tokens("abcdefg#x")) == ""
    assert text.update(tokens("abcdefgax")) == "fga" and text.finish_reason == "length"
    assert text.settled() == [("f", 5), ("g", 6), ("a", 7)]
    text = text_of("ab######x", stop=["fgh", "q"])
    assert text.update(tokens("abcdefghx")) == "cde" and text.finish_reason == "stop"
    assert text.cut and LETTERS.decode(text.tokens) == "cde"
    assert [piece for piece, _ in text.settled()] == ["c", "d", "e"]


def test_an_eos_that_was_generated_ends_it():
    text = text_of("a.####x", eos_id=tokens(".")[0])
    assert text.update(tokens("a.b.##x")) == "b" and text.finish_reason == "stop" and not text.cut
    text = text_of("a.#.##x", eos_id=tokens(".")[0])  # the one within the gap was given
    assert text.update(tokens("a.b.c#x")) == "b.c" and text.finish_reason is None


def test_text_that_may_change_comes_at_the_end():
    text = text_of("ab##x", keeps_revealed=False)
    assert text.update(tokens("abcdx")) == "" and text.provisional(tokens("abcdx")) == ["cd"]
    assert text.update(tokens("abefx"), last=True) == "ef" and text.finish_reason == "length"


@pytest.mark.parametrize("end", ["", "!"])
def test_characters_of_several_tokens(end):
    whole = list(("né" + end).encode())  # a token is a byte, 0 is the mask
    text = Text(
        lambda ids: bytes(ids).decode("utf-8", "replace"),
        [97] + [0] * len(whole),
        mask_id=0,
        prompt=1,
        suffix=0,
        stop=["xx"],
    )
    shown = []
    for count in range(1, len(whole) + 1):
        canvas = [97, *whole[:count], *[0] * (len(whole) - count)]
        shown.append((text.update(canvas), text.settled()))
    assert shown[0] == ("n", [("n", 1)])
    assert shown[1][0] == ""  # half a character
    assert shown[2][0] == "é" and text.text == "né" + end and PARTIAL not in text.text
    pieces = [piece for _, pieces in shown for piece in pieces]
    assert pieces[:3] == [("n", 1), ("", 2), ("é", 3)] and len(pieces) == len(whole)
