"""A job: numbered sequences, each with a seed of its own, in shards that are made one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edlm_engine import ops
from edlm_engine.engine import Engine
from edlm_engine.jobs.prompts import READ, read_prompts
from edlm_engine.sampling.config import GenerationConfig, as_config
from edlm_engine.sampling.each import generate_requests
from edlm_engine.sampling.generation import Generation
from edlm_engine.sampling.request import Request

# Columns of the results, and the names of their Arrow types; None is a list of token ids.
COLUMNS = {
    "index": "int64",
    "row": "int64",
    "text": "string",
    "tokens": None,
    "seed": "int64",
    "nfe": "int64",
    "energy_evaluations": "int64",
    "mean_ess": "float64",
    "error": "string",
}


@dataclass(frozen=True)
class Job:
    """Sequence i is copy i % num of row i // num of the prompts, or of the one prompt and suffix.

    Its seed is stream i of `seed`: without prompts, row i of `engine.generate(N, seed=seed)`. It
    does not depend on the shard, the worker or what is sampled beside it, as far as the models' own
    arithmetic does not (`GenerationConfig.batch_invariant`). A shard begins with an empty batch, so
    on machines of one kind it is the same whoever makes it, and however often.

    rows: an Arrow table of the prompts, or None. num: sequences of each row.
    shard_size: sequences of a shard. batch_size: how many of these run at a time.
    facts: what else must be equal for shards to belong together; of JSON's types.
    """

    config: GenerationConfig
    seed: int
    num: int
    rows: Any
    prompt: str | None
    suffix: str | None
    shard_size: int
    batch_size: int
    facts: Mapping[str, Any]

    @property
    def total(self) -> int:
        """All sequences."""
        return self.num * (1 if self.rows is None else self.rows.num_rows)

    @property
    def shards(self) -> range:
        """The numbers of the shards."""
        return range(-(-self.total // self.shard_size))

    def manifest(self) -> dict[str, Any]:
        """What makes the results what they are."""
        return {
            "config": self.config.to_json(),
            "seed": self.seed,
            "num": self.num,
            "prompt": self.prompt,
            "suffix": self.suffix,
            "total": self.total,
            "shard_size": self.shard_size,
            "batch_size": self.batch_size,
            **self.facts,
        }

    def make(self, engine: Engine, shard: int) -> Any:
        """The shard's Arrow table, a row for each sequence, by `index`.

        A sequence that cannot be made is null but for its `error`; the others are as without it.
        """
        import pyarrow

        first = shard * self.shard_size
        indices = range(first, min(first + self.shard_size, self.total))
        given: Any = None if self.rows is None else self._rows(indices)
        requests = self._requests(indices, given)
        found = [dict.fromkeys(COLUMNS, None) for _ in indices]
        for number, result in generate_requests(engine, requests, self.batch_size):
            found[number] = _facts(result)
        rows = self.rows is not None
        for number, index in enumerate(indices):
            place = {"index": index, "row": index // self.num if rows else None}
            found[number] |= place | {"seed": requests[number].seed[0]}  # type: ignore[index]
        table = pyarrow.Table.from_pylist(found, schema=_schema())
        for name in [] if self.rows is None else given.column_names:
            table = table.append_column(given.schema.field(name), given.column(name))
        return table

    def _rows(self, indices: range) -> Any:
        import pyarrow

        return self.rows.take(pyarrow.array([index // self.num for index in indices]))

    def _requests(self, indices: range, given: Any) -> list[Request]:
        seeds = ops.stream_keys(self.seed, torch.arange(indices.start, indices.stop)).tolist()
        known: list[dict[str, Any]] = [{"prompt": self.prompt, "suffix": self.suffix}] * len(seeds)
        if given is not None:
            known = given.select([name for name in READ if name in given.column_names]).to_pylist()
        return [
            Request(config=self.config, seed=[seed], **row)
            for seed, row in zip(seeds, known, strict=True)
        ]


def job_of(
    prompts: str | Path | Sequence[str | Path] | None = None,
    *,
    config: GenerationConfig | Mapping[str, Any] | None = None,
    seed: int = 0,
    num: int = 1,
    prompt: str | None = None,
    suffix: str | None = None,
    shard_size: int = 256,
    batch_size: int = 16,
    facts: Mapping[str, Any] | None = None,
) -> Job:
    """A job of files with prompts (see `read_prompts`), or of `num` sequences of one prompt.

    The fields are those of `Job`. Raises ValueError by the argument's name, and as `read_prompts`.
    """
    for name, value in (("num", num), ("shard_size", shard_size), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    given = dict(facts or {})
    config = as_config(config)
    if config.record:
        raise ValueError("record must be False in a job, whose results have no place for it")
    rows = None
    if prompts is not None:
        if prompt is not None or suffix is not None:
            raise ValueError("prompts must be given alone, got a prompt or suffix as well")
        paths = [prompts] if isinstance(prompts, (str, Path)) else prompts
        rows, given["prompts_sha256"] = read_prompts(paths)
        taken = sorted(set(COLUMNS) & set(rows.column_names))
        if taken:
            raise ValueError(
                f"prompts must not have columns of the results, got {', '.join(taken)}"
            )
    return Job(config, seed, num, rows, prompt, suffix, shard_size, batch_size, given)


def _facts(result: Generation | Exception) -> dict[str, Any]:
    if isinstance(result, Exception):
        return {"error": f"{type(result).__name__}: {result}"}
    ess = result.ess[0][~result.ess[0].isnan()]
    return {
        "text": result.texts[0] if result.texts else None,
        "tokens": result.sequences[0].tolist(),
        "nfe": int(result.nfe[0]),
        "energy_evaluations": int(result.energy_evaluations[0]),
        "mean_ess": ess.mean().item() if len(ess) else None,
    }


def _schema() -> Any:
    import pyarrow

    tokens = pyarrow.list_(pyarrow.int64())
    types = {
        name: pyarrow.type_for_alias(kind) if kind else tokens for name, kind in COLUMNS.items()
    }
    return pyarrow.schema(list(types.items()))
