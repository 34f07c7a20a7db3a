"""The options of one generation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from edlm_engine.sampling.aliases import named_fields
from edlm_engine.sampling.edlm_config import edlm_fields
from edlm_engine.sampling.rules import check_fields


@dataclass(frozen=True)
class GenerationConfig:
    """How to sample. Checked at construction: ValueError, or TypeError for a wrong type.

    `Engine.generate` takes a dict of these fields for it, also by the names of other libraries
    (`edlm_engine.sampling.aliases`), and `to_json` and `from_json` keep it as text.

    steps: N, the number of evenly spaced time steps; None is continuous time, one position at a
        time (first-hitting sampler).
    num_candidates: K complete sequences drawn per energy step; 1 is plain MDLM.
    window: the energy is used at times t in [1 - window, 1], nowhere if 0; or at t in [low, high],
        given as a pair. A transition from t_{i-1} to t_i counts as t_{i-1}.
    temperature, top_k, top_p, min_p: of the denoiser's distribution, applied in this order (see
        `edlm_engine.ops.sample_candidates`); `log_q` is the log-probability under the distribution
        so changed. 0 turns top_k and min_p off, 1 top_p.
    logit_bias: {token: what is added to its logit}, before the temperature; -inf forbids it.
    allowed_tokens: the only ones that may be drawn; None is all. forbidden_tokens: never drawn.
    energy_temperature: candidates are chosen with probability softmax(-energy / it). Temperatures
        lie in [1e-30, 1e30].
    batch_invariant: evaluate every model on one sequence at a time and on one CPU thread, so that
        a sequence repeats token for token in any batch; slower.
    final: how positions still masked at t_N are filled: by a draw, or by the most probable token.
        Continuous time leaves none.
    length: positions per sequence; None is the denoiser's own length.
    new_tokens: instead of it, how many positions there are beside the known tokens of the prompt
        and suffix. All sequences of a batch have the length of the longest: those with fewer known
        tokens have more new ones, as they would not alone. `Engine.generate_each`, and a session,
        give each its own length.
    eos_id: a token that ends a text: once everything up to the first one that was generated is
        revealed, the sequence takes no further step. What is not known after it is filled with it,
        and the text ends before it; up to there it is what all steps would have given. The host
        waits for the device once more in each step. Not with `remask`, "smc" and "gibbs", which may
        change what was revealed.
    order: which positions a step reveals (a file each in `edlm_engine.sampling.orders`).
        "ancestral", the exact reverse process of the diffusion, and "leftmost" are known before any
        model runs; "confidence", "margin" and "entropy" reveal the surest positions, as equally
        many a step as may be; "threshold" and "entropy_bounded" as many as are sure enough,
        whatever `steps` says; "resolved" what one call of the AR model settles, for the
        correction "speculative". The adaptive ones wait for the device once a step.
    block_length: reveal block after block of this many positions, from the first free one on, each
        with its share of the steps, at least one (semi-autoregressive); None is one block.
    remask: eta of ReMDM: in each step a revealed token is hidden again with at most this
        probability. For the ancestral order in discrete time, without blocks.
    threshold: of the order "threshold": the least probability that is revealed at once.
    entropy_bound: of "entropy_bounded", in nats.
    guidance: scale g of classifier-free guidance: logits are (1 + g) times those given the known
        tokens minus g times those with the known tokens masked. Two evaluations a step.
    record: keep what was drawn and how likely it was (`Generation.record`).
    correction: how the energy corrects the draws (a file each in
        `edlm_engine.sampling.corrections`, whose docstrings state the laws): "joint", the paper's K
        complete candidates; "local", candidates that differ in what the step reveals;
        "speculative", the AR model's own law left to right from the denoiser's drafts; "smc", K
        particles with weights; "gibbs", sweeps of them. All but "joint" need a planned order.
    shared_rests: of "local": how many rests the candidates share.
    ess_threshold: of "smc": resample below this part of K.
    ess_target: of "joint" and "local": score candidates only until the effective sample size is
        this, at most K; the host then waits for the device.
    sweeps: of "gibbs": how many follow the first.
    """

    steps: int | None = 128
    num_candidates: int = 8
    window: float | tuple[float, float] = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    allowed_tokens: tuple[int, ...] | None = None
    forbidden_tokens: tuple[int, ...] = ()
    energy_temperature: float = 1.0
    batch_invariant: bool = False
    final: Literal["sample", "argmax"] = "sample"
    length: int | None = None
    new_tokens: int | None = None
    eos_id: int | None = None
    order: str = "ancestral"
    block_length: int | None = None
    remask: float = 0.0
    threshold: float = 0.9
    entropy_bound: float = 0.1
    guidance: float = 0.0
    record: bool = False
    correction: str = "joint"
    shared_rests: int = 1
    ess_threshold: float = 0.5
    ess_target: float | None = None
    sweeps: int = 1

    def __post_init__(self):
        check_fields(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """The configuration with these fields, the others at their defaults.

        Fields may have the names that other libraries give them (`edlm_engine.sampling.aliases`).
        Raises ValueError for a field that there is not, naming the nearest, and for two names of
        one field.
        """
        return cls(**named_fields(values, [field.name for field in fields(cls)]))

    @classmethod
    def from_json(cls, text: str) -> GenerationConfig:
        """The inverse of `to_json`; fields may be left out. ValueError for anything else."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"config is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"config must be a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    @classmethod
    def from_edlm(cls, config: Any) -> GenerationConfig:
        """What a sampling configuration of EDLM's code says: see `edlm_config.edlm_fields`."""
        return cls(**edlm_fields(config))

    def to_json(self) -> str:
        """All fields as one JSON object."""
        return json.dumps(asdict(self))

    @property
    def keeps_revealed(self) -> bool:
        """Whether a revealed token stays as it is until the end."""
        return self.remask == 0 and self.correction not in ("smc", "gibbs")

    @property
    def energy_times(self) -> tuple[float, float] | None:
        """(low, high): the times at which an energy is used; None if at none."""
        if isinstance(self.window, (tuple, list)):
            low, high = self.window
            return low, high
        return (1 - self.window, 1.0) if self.window > 0 else None


def as_config(config: GenerationConfig | Mapping[str, Any] | None) -> GenerationConfig:
    """What `Engine.generate` was given; TypeError if it is no configuration."""
    if config is None:
        return GenerationConfig()
    if isinstance(config, Mapping):
        return GenerationConfig.from_dict(config)
    if not isinstance(config, GenerationConfig):
        raise TypeError(f"config must be a GenerationConfig or a dict, got {config!r}")
    return config
