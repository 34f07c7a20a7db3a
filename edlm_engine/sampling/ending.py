"""The end of a text at its first EOS, before all positions are revealed.

What is revealed stays, so once everything up to the first EOS that was generated is there, no later
step changes the text: it is the one that all steps would have given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from edlm_engine.sampling.run import Run


def text_sizes(run: Run, eos_id: int) -> Tensor:
    """[B] int64: how many tokens come before the first EOS that was generated, L if it is not there
    or something before it is hidden."""
    length = run.xt.shape[1]
    place = torch.arange(length, device=run.device)
    first = torch.where((run.xt == eos_id) & ~run.known, place, length).amin(dim=1)
    hidden = torch.where(run.xt == run.denoiser.mask_id, place, length).amin(dim=1)
    return torch.where(first < hidden, first, length)


def end_at_eos(run: Run, eos_id: int) -> np.ndarray:
    """Fill with EOS what was not known after the end of a text; [B] bool, which have one.

    Waits for the device.
    """
    sizes, length = text_sizes(run, eos_id), run.xt.shape[1]
    filled = (torch.arange(length, device=run.device) > sizes[:, None]) & ~run.known
    run.xt.masked_fill_(filled, eos_id)
    if run.recorder is not None:
        run.recorder.filled(filled)
    return (sizes < length).cpu().numpy()


def texts_of(run: Run, tokenizer: Any) -> list[str]:
    """The sequences decoded: whole, or up to the EOS that ends a text."""
    rows, eos_id = run.xt.tolist(), run.config.eos_id
    if eos_id is not None:
        sizes = text_sizes(run, eos_id).tolist()
        rows = [row[:size] for row, size in zip(rows, sizes, strict=True)]
    return [tokenizer.decode(row) for row in rows]
