"""The table of how an NCE energy ranks candidates."""

import pytest
import torch

from bench.quality import ranking
from edlm_engine import Engine
from edlm_engine.energies.sums import Summable


class Residual(Summable):
    """The AR energy with log q, under the name of an NCE energy: it ranks as that does."""

    def __init__(self, ar, nce):
        self.ar, self.model = ar, nce.energy.model

    def energy(self, x0, xt, log_q, t):
        logits = self.ar.denoiser.logits(xt, torch.zeros(len(xt))).float()
        logits[..., self.ar.denoiser.mask_id] = -torch.inf
        log_p = logits.log_softmax(-1)[:, None].expand(-1, x0.shape[1], -1, -1)
        masked = (xt == self.ar.denoiser.mask_id)[:, None]
        of_q = torch.where(masked, log_p.gather(3, x0[..., None])[..., 0], 0.0).sum(2)
        return self.ar.energy(x0, xt, of_q, t)

    __call__ = energy


def test_ranks_are_those_of_the_energy(monkeypatch):
    monkeypatch.setattr(ranking, "SHARES", (0.5,))
    monkeypatch.setattr(ranking, "CANDIDATES", 3)
    nce, ar = Engine.from_pretrained(energy="nce"), Engine.from_pretrained()
    text = '"I do not know what you mean," she said, and turned away to the window. ' * 2
    windows = torch.tensor([ar.tokenizer.encode(text)[:32]] * 2)
    (row,) = ranking.ranking(nce, ar, windows)
    assert row[0] == "0.50" and float(row[1]) < float(row[2]) and -1 <= float(row[4]) <= 1
    same = Engine(ar.denoiser, Residual(ar, nce), ar.tokenizer)
    (row,) = ranking.ranking(same, ar, windows)
    assert row[4] == "1.00" and row[5] == row[6]


def test_one_source_of_text(capsys):
    with pytest.raises(SystemExit):
        ranking.main([])
    assert "either --data or --own" in capsys.readouterr().err
