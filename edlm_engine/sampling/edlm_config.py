"""The sampling configuration of EDLM's code, and of its relatives, in the engine's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREDICTORS = ("ddpm", "ddpm_cache", "ancestral", "ancestral_cache")
NOISE_REMOVAL = {
    True: "argmax",
    "greedy": "argmax",
    False: "sample",
    "ancestral": "sample",
    "none": "sample",
}
KNOWN = ("steps", "is_size", "is_start", "is_end", "is_temp", "noise_removal")


def edlm_fields(config: Any) -> dict[str, Any]:
    """Fields of `GenerationConfig` that say what a sampling configuration of EDLM says.

    config: a mapping, an OmegaConf node or any object with attributes; the node `sampling` or what
    holds it.

    | released | field |
    |---|---|
    | `steps` | `steps` |
    | `is_size` | `num_candidates`; 1 where there is none (MDLM, ReMDM, DUO) |
    | `is_end`, `is_start` | `window` = (is_end, is_start), both inclusive; 0 if is_end > is_start |
    | `is_temp` | `energy_temperature` |
    | `noise_removal` | `final`: "argmax" if True or "greedy", else "sample" |
    | `nucleus_p` (ReMDM), `p_nucleus` (DUO) | `top_p` |

    ReMDM's nucleus ends before the token that reaches its mass; `top_p` keeps that token.
    What an energy configuration leaves out has the released default: is_start 0.6, is_end 0.4,
    is_temp 1. Two things are no fields: `ar_carry_over` (`edlm_carry_over`) is the energy's, and
    where the released code leaves masks in the sequence (`noise_removal` False or "none"), the
    engine draws them.

    Raises ValueError for a configuration that has none of these, for a `predictor` that is no
    ancestral sampler, and for an unknown `noise_removal`.
    """
    node = sampling_node(config)
    if all(get(node, name) is None for name in KNOWN):
        raise ValueError(f"config must have some of {', '.join(KNOWN)}, got {config!r}")
    predictor = get(node, "predictor", PREDICTORS[0])
    if predictor not in PREDICTORS:
        raise ValueError(f"predictor must be one of {', '.join(PREDICTORS)}, got {predictor!r}")
    removal = get(node, "noise_removal", True)
    if not isinstance(removal, (bool, str)) or removal not in NOISE_REMOVAL:
        known = ", ".join(map(repr, NOISE_REMOVAL))
        raise ValueError(f"noise_removal must be one of {known}, got {removal!r}")
    fields: dict[str, Any] = {
        "num_candidates": get(node, "is_size", 1),
        "final": NOISE_REMOVAL[removal],
        "top_p": get(node, "nucleus_p", get(node, "p_nucleus", 1.0)),
    }
    if get(node, "steps") is not None:
        fields["steps"] = get(node, "steps")
    if get(node, "is_size") is not None:
        low, high = edlm_window(node)
        # No time lies above 1 or below 0.
        fields["window"] = (
            (max(low, 0.0), min(high, 1.0)) if low <= min(high, 1) and high >= 0 else 0.0
        )
        fields["energy_temperature"] = get(node, "is_temp", 1.0)
    return fields


def edlm_window(config: Any) -> tuple[float, float]:
    """(is_end, is_start): the lowest and the highest time at which the released code uses E."""
    node = sampling_node(config)
    return get(node, "is_end", 0.4), get(node, "is_start", 0.6)


def edlm_carry_over(config: Any) -> bool:
    """`ar_carry_over`, True by default as in the released code: `ARResidualEnergy(carry_over=)`."""
    return bool(get(sampling_node(config), "ar_carry_over", True))


def sampling_node(config: Any) -> Any:
    """The node `sampling` of a configuration, or the configuration if it has none."""
    return get(config, "sampling", config)


def get(node: Any, name: str, default: Any = None) -> Any:
    """A value of a mapping or an object with attributes; the default also for None."""
    value = None
    if not isinstance(node, Mapping):
        value = getattr(node, name, None)
    elif name in node:  # not node.get, which a node of OmegaConf with fixed keys may refuse
        value = node[name]
    return default if value is None else value
