"""Predicates, patterns and counts as energies."""

import math
import re

import pytest
import torch

from edlm_engine import ConstraintEnergy, TokenCountEnergy
from edlm_engine.energies.constraint import PENALTY


class Letters:
    def decode(self, ids):
        return "".join("abc\n"[i] for i in ids)


X0 = torch.tensor([[[0, 1, 2], [0, 0, 0]], [[3, 2, 1], [2, 2, 1]]])
OTHERS = X0[:, 0], torch.zeros(2, 2), torch.ones(2)


@pytest.mark.parametrize("penalty", [PENALTY, 0.5, math.inf])
def test_whole_texts_match(penalty):
    def energies(pattern):
        energy = ConstraintEnergy(pattern, penalty=penalty, tokenizer=Letters())(X0, *OTHERS)
        assert energy.dtype == torch.float32 and set(energy.flatten().tolist()) <= {0.0, penalty}
        return (energy == 0).tolist()

    assert energies("a.*") == [[True, True], [False, False]]
    assert energies("[abc]b.|cc.") == [[True, False], [False, True]]
    assert energies("ab") == [[False, False], [False, False]]  # the whole, not a part
    assert energies(".c.") == [[False, False], [False, True]]
    assert energies(re.compile(".C.", re.DOTALL | re.IGNORECASE)) == [[False] * 2, [True] * 2]


def test_predicates_of_tokens_and_text():
    for energy in (
        ConstraintEnergy(lambda tokens: tokens[:, 0] == 2, penalty=3),
        ConstraintEnergy(lambda tokens: (tokens[:, 0] == 2).tolist(), penalty=3),
        ConstraintEnergy(
            lambda texts: [text[0] == "c" for text in texts],
            penalty=3,
            on="text",
            tokenizer=Letters(),
        ),
    ):
        assert energy(X0, *OTHERS).tolist() == [[3, 3], [3, 0]]


def test_counts():
    def energies(counts, **options):
        return TokenCountEnergy(counts, **options)(X0, *OTHERS).tolist()

    assert energies({0: 1}, penalty=2) == [[0, 4], [2, 2]]
    assert energies({0: (1, 2)}, penalty=2) == [[0, 2], [2, 2]]
    assert energies({2: (2, None)}, penalty=2) == [[2, 4], [2, 0]]
    assert energies({0: 1, 2: (0, 1)}, penalty=2) == [[0, 4], [2, 4]]
    assert energies({0: 1}) == [[0, 2 * PENALTY], [PENALTY] * 2]
    assert energies({0: 1}, penalty=math.inf) == [[0, math.inf], [math.inf] * 2]


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"truth values \[4\], got float32 \[4\]"):
        ConstraintEnergy(lambda tokens: tokens[:, 0] / 2)(X0, *OTHERS)
    with pytest.raises(TypeError, match=r"truth values \[4\], got bool \[4, 3\]"):
        ConstraintEnergy(lambda tokens: tokens > 1)(X0, *OTHERS)
    with pytest.raises(ValueError, match=r"holds must be a regular expression, '\('"):
        ConstraintEnergy("(", tokenizer=Letters())
    with pytest.raises(ValueError, match='on must be "text" for a regular expression'):
        ConstraintEnergy("a", on="tokens", tokenizer=Letters())
    with pytest.raises(TypeError, match="tokenizer must have a method decode"):
        ConstraintEnergy("a")
    for penalty, error in ((0, ValueError), (math.nan, ValueError), ("9", TypeError)):
        for energy in (ConstraintEnergy, TokenCountEnergy):
            with pytest.raises(error, match="penalty must be"):
                energy({0: 1} if energy is TokenCountEnergy else len, penalty=penalty)
    for counts, error in (
        ({}, TypeError),
        ([0], TypeError),
        ({-1: 2}, ValueError),
        ({0: -1}, ValueError),
        ({0: (2, 1)}, ValueError),
        ({0: "2"}, TypeError),
        ({"a": 2}, TypeError),
        ({0: (1, 2, 3)}, TypeError),
    ):
        with pytest.raises(error, match="counts must be"):
            TokenCountEnergy(counts)
