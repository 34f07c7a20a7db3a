from typing import Any

from numpy.typing import ArrayLike, NDArray

def build_info() -> dict[str, Any]: ...
def stream_keys(seeds: ArrayLike, coordinates: ArrayLike) -> NDArray[Any]: ...
def sample_candidates(
    logits: NDArray[Any],
    keys: ArrayLike,
    num_candidates: int,
    *,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    threads: int = 1,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
def token_log_probs(
    logits: NDArray[Any],
    targets: ArrayLike,
    *,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    threads: int = 1,
) -> NDArray[Any]: ...
def resample(
    log_weights: ArrayLike, keys: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
def reveal_steps(keys: ArrayLike, length: int, mask_probs: ArrayLike) -> NDArray[Any]: ...
