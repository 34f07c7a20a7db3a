from typing import Any

# Arrays of any library come in; NumPy arrays go out, and CuPy arrays on CUDA.
def build_info() -> dict[str, Any]: ...
def words(what: str, array: Any) -> Any: ...
def stream_keys(seeds: Any, coordinates: Any) -> Any: ...
def sample_candidates(
    logits: Any,
    keys: Any,
    num_candidates: int,
    *,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    statistics: bool = False,
    threads: int = 1,
) -> tuple[Any, ...]: ...
def sample_weights(
    weights: Any, keys: Any, num_candidates: int, *, threads: int = 1
) -> tuple[Any, Any]: ...
def token_log_probs(
    logits: Any,
    targets: Any,
    *,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    threads: int = 1,
) -> Any: ...
def place_candidates(
    tokens: Any,
    log_q: Any,
    places: Any,
    starts: Any,
    rows: Any,
    first_position: int,
    x0: Any,
    canvas: Any,
    failed: Any,
) -> tuple[Any, Any]: ...
def reveal_chosen(
    energy: Any,
    temperature: float,
    keys: Any,
    x0: Any,
    places: Any,
    starts: Any,
    rows: Any,
    columns: Any,
    canvas: Any,
    ess: Any,
    log_z: Any,
    failed: Any,
) -> Any: ...
def sum_log_probs(log_probs: Any, sequences: int, starts: Any = None) -> Any: ...
def residual_draw(
    logits_p: Any,
    logits_q: Any,
    draft: Any,
    keys: Any,
    *,
    forbidden_p: int = -1,
    forbidden_q: int = -1,
    temperature_p: float = 1.0,
    temperature_q: float = 1.0,
    threads: int = 1,
) -> tuple[Any, Any, Any]: ...
def resample(log_weights: Any, keys: Any) -> tuple[Any, Any, Any]: ...
def reveal_steps(keys: Any, length: int, mask_probs: Any) -> Any: ...
