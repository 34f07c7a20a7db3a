"""Text to train on, and a run of a few steps."""

import pytest
import torch

from edlm_engine.training.config import TrainConfig


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    words = ("the", "cat", "and", "a", "dog", "sat", "down", "by", "old", "house", "green", "hill")
    random = torch.Generator().manual_seed(3)
    for author in ("Ames_One", "Ames_Two", "Bell_One"):
        picks = torch.randint(len(words), (400,), generator=random).tolist()
        (folder / f"{author}.txt").write_text(" ".join(words[i] for i in picks))
    return folder


@pytest.fixture
def config(data, tmp_path):
    return TrainConfig(
        data=(str(data),),
        out=str(tmp_path / "run"),
        held_out=("Bell_*",),
        vocab_size=270,
        length=8,
        hidden_dim=16,
        blocks=1,
        heads=2,
        cond_dim=4,
        dropout=0.1,
        batch_size=4,
        steps=6,
        warmup=2,
        ema=0.5,
        eval_every=2,
        eval_windows=8,
        final_windows=16,
        checkpoint_every=2,
        precision="fp32",
    )
