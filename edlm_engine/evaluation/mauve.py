"""MAUVE (Pillutla et al. 2021) of two sets of texts by the library of that name, if installed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from edlm_engine.evaluation.judge import Judge


def require_mauve() -> None:
    """Raise ImportError saying what to install, unless the library is there."""
    try:
        import mauve  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "MAUVE needs mauve-text, which brings faiss and scikit-learn: "
            "pip install 'edlm_engine[evaluation]'"
        ) from error


def mauve_score(judge: Judge, texts: Sequence[str], reference: Sequence[str]) -> float:
    """In (0, 1], 1 for equal laws, from the judge's last hidden states after each text.

    Both sets are cut to the size of the smaller, the scale the score depends on; below a thousand
    texts each it is mostly noise. Deterministic. Raises ValueError for fewer than 20 texts.
    """
    require_mauve()
    from mauve import compute_mauve

    count = min(len(texts), len(reference))
    if count < 20:
        raise ValueError(f"MAUVE needs 20 texts of each at least, got {count}")
    first, second = (judge.features(part[:count]).numpy() for part in (texts, reference))
    with torch.inference_mode(False):
        return float(np.asarray(compute_mauve(first, second, seed=25, verbose=False).mauve))
