"""How well an NCE energy ranks the denoiser's candidates, against the AR energy: a table.

python -m bench.quality.ranking --data HELD_OUT_FILES [--own DIR]; DIR is that of an `edlm evaluate
samples`, whose texts without an energy are looked at in the place of the held-out ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.report.page import table
from edlm_engine import Engine
from edlm_engine.checkpoints.files import read_json
from edlm_engine.evaluation.commands import held_out_text
from edlm_engine.evaluation.judge import standard_error
from edlm_engine.evaluation.metrics import effective_sample_size
from edlm_engine.training.corpus import text_files
from edlm_engine.training.nce import Contrast

SHARES, CANDIDATES = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0), 8


@torch.inference_mode()
def ranking(nce: Engine, ar: Engine, windows: Tensor) -> list[list[str]]:
    """A row for each share of masked positions; both engines have the same denoiser."""
    denoiser: Any = nce.denoiser
    model = Contrast(denoiser, nce.energy.model, CANDIDATES)  # type: ignore[union-attr]
    random, rows = torch.Generator().manual_seed(0), []
    zeros = torch.zeros(len(windows))
    for share in SHARES:
        count = max(1, int(share * windows.shape[1]))
        rank = torch.rand(windows.shape, generator=random).argsort(1).argsort(1)
        xt = torch.where(rank < count, denoiser.mask_id, windows)
        drawn = model.draw(xt, zeros, torch.arange(len(windows)))
        x0, t = torch.cat((windows[:, None], drawn), dim=1), zeros + share
        none = torch.zeros(x0.shape[:2])
        e = nce.energy(x0, xt, none, t)  # type: ignore[misc]
        log_p = -ar.energy(x0, xt, none, t)[:, 1:]  # type: ignore[misc]
        logits = denoiser.logits(xt, zeros).float()
        logits[..., denoiser.mask_id] = -torch.inf
        log_q = logits.log_softmax(-1)[:, None].expand(-1, CANDIDATES, -1, -1)
        log_q = log_q.gather(3, drawn[..., None])[..., 0]
        ratio = log_p - torch.where((rank < count)[:, None], log_q, 0.0).sum(2)
        own, other = (x - x.mean(1, keepdim=True) for x in (-e[:, 1:], ratio))
        found = (own * other).sum() / (own.square().sum() * other.square().sum()).sqrt()
        gains = [
            ((x.softmax(1) * log_p).sum(1) - log_p.mean(1)).double() / count for x in (own, other)
        ]
        rows.append(
            [
                *(f"{share:.2f}", f"{e[:, 0].mean():.1f}", f"{e[:, 1:].mean():.1f}"),
                f"{own.std(1).mean():.1f}, {other.std(1).mean():.1f}",
                f"{found:.2f}",
                *(f"{gain.mean():.3f} ±{standard_error(gain):.3f}" for gain in gains),
                f"{effective_sample_size(own).mean():.2f}",
            ]
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.quality.ranking", description=__doc__)
    parser.add_argument("--model", help="as of edlm generate (default: the bundled pair)")
    parser.add_argument("--energy", default="nce", help="the NCE energy, as of edlm generate")
    parser.add_argument("--data", nargs="+", help="held-out text files")
    parser.add_argument("--own", type=Path, help="folder of an edlm evaluate samples")
    parser.add_argument("--windows", type=int, default=64, help="of it (64)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    args = parser.parse_args(argv)
    if (args.data is None) == (args.own is None):
        parser.error("give either --data or --own")
    torch.set_num_threads(args.threads)
    nce = Engine.from_pretrained(args.model, energy=args.energy)
    ar = Engine.from_pretrained(args.model, energy="ar")
    if args.data:
        windows, _ = held_out_text(nce, text_files(args.data), None, args.windows, unwrap=True)
    else:
        files = sorted(args.own.glob("units/MDLM-*/*.json"))
        found = [record["tokens"] for file in files for record in read_json(file)["sequences"]]
        windows = torch.tensor(found[: args.windows])
    head = ["share masked", "E of the text given", "E of draws", "spread of E, of AR"]
    head += ["correlation", "gain by NCE", "gain by AR", f"ESS of {CANDIDATES}"]
    print(table(head, ranking(nce, ar, windows)))


if __name__ == "__main__":
    main()
