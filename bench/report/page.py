"""What the sections of a report share: benchmarks of a run by group, tables, and the limits."""

from __future__ import annotations

from collections.abc import Iterator

# The benchmarks of each group, as pytest-benchmark writes them.
Groups = dict[str, list[dict]]


def median(benchmark: dict) -> float:
    return benchmark["stats"]["median"]


def spread(benchmark: dict) -> str:
    if benchmark["stats"]["rounds"] == 1:
        return "one run"
    return f"{benchmark['stats']['iqr'] / median(benchmark):.0%}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def starting(groups: Groups, *prefixes: str) -> Iterator[tuple[str, list[dict]]]:
    return ((name, results) for name, results in groups.items() if name.startswith(prefixes))


def bandwidth(groups: Groups) -> float | None:
    """Bytes per second of the best round of one read."""
    for benchmark in groups.get("limits", []):
        if "bytes" in benchmark["extra_info"]:
            return benchmark["extra_info"]["bytes"] / benchmark["stats"]["min"]
    return None


def matrix_rates(groups: Groups) -> dict[str, tuple[float, str]]:
    """Per dtype, operations per second of the best round of the fastest product, and its name."""
    best: dict[str, tuple[float, str]] = {}
    for benchmark in groups.get("limits", []):
        info = benchmark["extra_info"]
        if "flops" in info:
            dtype = info["name"].split()[-1]
            rate = (info["flops"] / benchmark["stats"]["min"], info["name"].removesuffix(dtype))
            best[dtype] = max(best.get(dtype, (0.0, "")), rate)
    return best


def least_seconds(flops: float | None, dtype: str | None, groups: Groups) -> float | None:
    """How long matrix work takes at this machine's rate; None where that was not measured."""
    rates = matrix_rates(groups)
    return flops / rates[dtype][0] if flops is not None and dtype in rates else None
