"""A small selection of every CUDA kernel, to be run under compute-sanitizer.

All three ways to deal rows (a warp each, cut at their chunks, a block each: two waves and more),
every dtype, aligned and unaligned rows, a nucleus, bad rows. Results are checked against the CPU
only in passing.
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
                for options in ({}, {"forbidden_id": vocab - 1}, {"top_p": 0.9}):
                    if "top_p" in options and rows * vocab > 20_000:
                        continue
                    tokens, log_q = ops.sample_candidates(logits, keys, 5, **options)
                    want, _ = ops.sample_candidates(logits.cpu(), keys.cpu(), 5, **options)
                    assert (tokens.cpu() != want).sum() <= 1 + want.numel() // 1000
                scores = ops.token_log_probs(logits, tokens[:, 0])
                assert scores.isfinite().all() and log_q.isfinite().all()
    logits = torch.full((3, 5000), torch.nan, device="cuda")
    keys = torch.arange(3, device="cuda")
    assert (ops.sample_candidates(logits, keys, 2)[0] == -1).all()
    choice, _, _ = ops.resample(torch.zeros(3, 40, device="cuda"), keys)
    steps = ops.reveal_steps(keys, 37, torch.linspace(1, 0, 9, dtype=torch.float64, device="cuda"))
    assert ((choice >= 0) & (choice < 40)).all() and ((steps >= 1) & (steps <= 9)).all()
    print("every kernel ran")


if __name__ == "__main__":
    main()
