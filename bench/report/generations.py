"""Whole generations against other ways to sample: measured, added up from steps, at the limit."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from bench.report.page import Groups, least_seconds, median, spread, starting, table

MEMORY = "paper size, one energy step, K=16"
STEPS = "steps of paper size, "
ENGINE = "edlm_engine"


@dataclass(frozen=True)
class Total:
    """A run added up over its kinds of steps."""

    seconds: float
    error: float  # standard error of `seconds`, from the spread within each kind
    flops: float


def section(groups: Groups) -> str:
    whole = {name: r for name, r in starting(groups, "paper size") if name != MEMORY}
    sampled = dict(starting(groups, STEPS))
    if not whole and not sampled:
        return ""
    parts = ["## Whole generations against other ways to sample"]
    for name, results in whole.items():
        base = median(results[0])
        rows = [[b["extra_info"]["name"], f"{median(b) / base:.2f} x", spread(b)] for b in results]
        parts += [f"**{name}**", table(["", "time", "spread"], rows)]
    parts += _long_runs(sampled)
    parts += _checks(whole, sampled)
    parts += _limits(whole, sampled, groups)
    return "\n\n".join(parts)


def _long_runs(sampled: Groups) -> list[str]:
    if not sampled:
        return []
    parts = [
        "### Runs of a thousand steps",
        "A run of 1024 steps takes hours on a processor, so these are not timed whole. Each is "
        "**a sum over a sample of steps**: how often each kind of step occurs, which the reveal "
        "plan of the seed fixes exactly, times the mean time of a few steps of that kind, spread "
        "evenly over the run and made by the real code from the state it would have there. "
        "edlm_engine's counts are evaluations per sequence, since each sequence runs its own "
        "steps; the released algorithm's are of the whole batch.",
    ]
    for name, results in sampled.items():
        base = results[0]["stats"]["mean"]
        runs = list(results[0]["extra_info"]["counts"])
        rows = []
        for b in results:
            info, stats = b["extra_info"], b["stats"]
            sample, deviation = stats["rounds"], stats["stddev"] / stats["mean"]
            rows.append(
                [info["name"], f"{stats['mean'] / base:.2f} x", str(sample)]
                + [f"{deviation:.0%}" if sample > 1 else "-"]
                + [f"{info['counts'][steps]:.0f}" for steps in runs]
            )
        header = ["", "time of one", "sample", "deviation", *(f"how many, N={n}" for n in runs)]
        parts += [f"**{name.removeprefix('steps of ')}**", table(header, rows)]
    return parts


def totals(results: list[dict], steps: str) -> dict[str, Total]:
    """Per side, a run of ``steps`` steps added up from its kinds."""
    sides = {}
    for who in dict.fromkeys(b["extra_info"]["who"] for b in results):
        kinds = [b for b in results if b["extra_info"]["who"] == who]
        counts = [b["extra_info"]["counts"][steps] for b in kinds]
        of_kind = list(zip(counts, kinds, strict=True))
        seconds = sum(n * b["stats"]["mean"] for n, b in of_kind)
        variance = sum((n * b["stats"]["stddev"]) ** 2 / b["stats"]["rounds"] for n, b in of_kind)
        flops = sum(n * (b["extra_info"]["flops"] or 0) for n, b in of_kind)
        sides[who] = Total(seconds, math.sqrt(variance), flops)
    return sides


def _checks(whole: Groups, sampled: Groups) -> list[str]:
    """The sum for the few steps that were also timed as a whole."""
    lines = []
    for name, results in sampled.items():
        setting = name.removeprefix(STEPS).split(", ", 1)
        for steps in results[0]["extra_info"]["counts"]:
            timed = whole.get(f"paper size, {setting[0]}, {steps} steps, {setting[1]}")
            if timed is None:
                continue
            sums = totals(results, steps)
            ratios = [
                f"{sums[b['extra_info']['name']].seconds / median(b):.2f} x the time measured for "
                f"{b['extra_info']['name']}"
                for b in timed
                if b["extra_info"]["name"] in sums
            ]
            lines.append(
                f"Check of the method: for {steps} steps, {setting[1]}, the same sums give "
                + " and ".join(ratios)
                + "."
            )
    return lines


def _limits(whole: Groups, sampled: Groups, groups: Groups) -> list[str]:
    """The ratio reached to the released algorithm, and what it would be with the models alone."""
    rows, shares = [], []
    for name, results in whole.items():
        ours, released = results[0], next((b for b in results if _is_released(b)), None)
        info = ours["extra_info"]
        least = least_seconds(info.get("flops"), info.get("dtype"), groups)
        if released and least:
            setting = name.removeprefix("paper size, ")
            rows.append(_limit_row(setting, "timed", median(ours), median(released), least))
            shares.append(least / median(ours))
    for name, results in sampled.items():
        dtype, setting = name.removeprefix(STEPS).split(", ", 1)
        for steps in results[0]["extra_info"]["counts"]:
            sums = totals(results, steps)
            if ENGINE not in sums or len(sums) < 2:
                continue
            ours, released = sums[ENGINE], next(t for who, t in sums.items() if who != ENGINE)
            least = least_seconds(ours.flops, dtype, groups)
            if least:
                error = math.hypot(ours.error / ours.seconds, released.error / released.seconds)
                row = f"{dtype}, {steps} steps, {setting}"
                how = f"sum, ± {error:.0%}"
                rows.append(_limit_row(row, how, ours.seconds, released.seconds, least))
                shares.append(least / ours.seconds)
    if not rows:
        return []
    header = ["", "how", "ratio reached", "matrix work of edlm_engine's time", "ratio at the limit"]
    return [
        "### Against the limit",
        "The matrix work of the models alone, at this machine's rate, is "
        f"{statistics.median(shares):.0%} of edlm_engine's time (the median of these settings). A "
        "sampler that makes these model calls (the denoiser at each step that reveals something, "
        "the AR model on K candidates in each energy step, the heads where tokens are drawn or "
        "scored) can be faster than the released algorithm here by no more than the ratio at the "
        "limit, were everything else free.",
        table(header, rows),
    ]


def _is_released(benchmark: dict) -> bool:
    return benchmark["extra_info"]["name"].startswith("released")


def _limit_row(name: str, how: str, ours: float, released: float, least: float) -> list[str]:
    ratio, limit = f"{released / ours:.2f} x", f"{released / least:.2f} x"
    return [name, how, ratio, f"{least / ours:.0%}", limit]
