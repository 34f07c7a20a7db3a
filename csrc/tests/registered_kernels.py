"""Loads the torch ring and checks that every op is registered for every backend it was built with.

Usage: registered_kernels.py LIBRARY BACKEND..., BACKEND being CPU or CUDA. Needs no GPU. In a torch
with CUDA it also checks that the ring reaches torch's accessor of the current stream.
"""

import ctypes
import sys

import torch

OPS = [
    "place_candidates",
    "resample",
    "residual_draw",
    "reveal_chosen",
    "reveal_steps",
    "sample_candidates",
    "sample_candidates_statistics",
    "sample_weights",
    "stream_keys",
    "sum_log_probs",
    "token_log_probs",
]
STREAM_ACCESSOR = "aoti_torch_get_current_cuda_stream"


def main(library: str, backends: list[str]) -> int:
    torch.ops.load_library(library)
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    missing = []
    for op in OPS:
        for backend in ("CPU", "CUDA"):
            there = torch._C._dispatch_has_kernel_for_dispatch_key(f"edlm::{op}", backend)
            if there != (backend in backends):
                missing.append(f"edlm::{op} is{'' if there else ' not'} registered for {backend}")
    if (
        torch.version.cuda
        and "CUDA" in backends
        and not hasattr(ctypes.CDLL(library), STREAM_ACCESSOR)
    ):
        missing.append(f"{STREAM_ACCESSOR} is out of reach")
    print("\n".join(missing) or f"{len(OPS)} ops registered for {' and '.join(backends)}")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
