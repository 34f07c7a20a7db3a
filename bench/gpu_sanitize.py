"""A small selection of every CUDA kernel, to be run under compute-sanitizer.

All three ways to deal rows (a warp each, cut at their chunks, a block each: two waves and more),
every dtype, aligned and unaligned rows, cuts, statistics, bad rows. Results are checked against the
CPU only in passing.
"""

import torch

from edlm_engine import ops


def rows_of(rows: int, vocab: int, dtype: torch.dtype, offset: int) -> torch.Tensor:
    """Rows that start `offset` elements into an allocation and end where it ends."""
    memory = torch.randn(offset + rows * vocab, generator=torch.Generator().manual_seed(vocab))
    return memory.to(dtype).cuda()[offset:].view(rows, vocab)


def main() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for rows, vocab in ((3, 28), (2, 4097), (2, 50258), (1200, 4201)):
            for offset in (0, 1):
                logits = rows_of(rows, vocab, dtype, offset)
                keys = ops.stream_keys(1, torch.arange(rows, device="cuda"))
                for options in (
                    {},
                    {"forbidden_id": vocab - 1, "statistics": True},
                    {"top_p": 0.9},
                    {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "statistics": True},
                ):
                    if "top_p" in options and rows * vocab > 20_000:
                        continue
                    tokens, log_q, *_ = ops.sample_candidates(logits, keys, 5, **options)
                    want, *_ = ops.sample_candidates(logits.cpu(), keys.cpu(), 5, **options)
                    assert (tokens.cpu() != want).sum() <= 1 + want.numel() // 1000
                scores = ops.token_log_probs(logits, tokens[:, 0])
                assert scores.isfinite().all() and log_q.isfinite().all()
                q = logits.flip(0) / 2
                for drafts in (tokens[:, 0].flip(0), logits.argmin(dim=1)):
                    made = ops.residual_draw(logits, q, drafts, keys)
                    want = ops.residual_draw(*(x.cpu() for x in (logits, q, drafts, keys)))
                    assert (made[0].cpu() != want[0]).sum() <= 1 + rows // 1000
    logits = torch.full((3, 5000), torch.nan, device="cuda")
    keys = torch.arange(3, device="cuda")
    assert (ops.sample_candidates(logits, keys, 2)[0] == -1).all()
    choice, _, _ = ops.resample(torch.zeros(3, 40, device="cuda"), keys)
    steps = ops.reveal_steps(keys, 37, torch.linspace(1, 0, 9, dtype=torch.float64, device="cuda"))
    assert ((choice >= 0) & (choice < 40)).all() and ((steps >= 1) & (steps <= 9)).all()
    advance_a_step()
    print("every kernel ran")


def advance_a_step() -> None:
    """Two sequences that are scored and one that is not, of lengths that fill no block."""
    length, candidates = 301, 5
    canvas = torch.zeros(4, length, dtype=torch.int64, device="cuda")
    failed = torch.zeros(4, dtype=torch.int64, device="cuda")
    ess, log_z = torch.zeros(2, 4, 1, device="cuda")
    places = torch.arange(3 * length, device="cuda")
    starts = torch.arange(0, 3 * length + 1, length, device="cuda")
    rows, keys = torch.tensor([3, 0, 2], device="cuda"), torch.arange(2, device="cuda")
    tokens = torch.ones(3 * length, candidates, dtype=torch.int64, device="cuda")
    x0 = torch.zeros(2, candidates, length, dtype=torch.int64, device="cuda")
    log_q = -tokens.float()
    _, sums = ops.place_candidates(tokens, log_q, places, starts, rows, x0, canvas, failed)
    assert (sums == -length).all() and (canvas.sum(1) == canvas.new_tensor([0, 0, length, 0])).all()
    two, columns = (places[: 2 * length], starts[:3], rows[:2]), torch.zeros_like(rows[:2])
    ops.reveal_chosen(-sums, keys, x0, *two, columns, canvas, ess, log_z, failed)
    assert (canvas[[0, 2, 3]] == 1).all() and not canvas[1].any() and not failed.any()
    assert (ops.sum_log_probs(log_q.view(-1), 3) == -length * candidates).all()


if __name__ == "__main__":
    main()
