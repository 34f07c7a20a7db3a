"""The sections of the page: a plot or two and a table each, and what they show.

`on` names the models in every plot, which may be seen without its page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.quality.energies import BINS, DRAWS, POOL, over_time
from bench.quality.experiments import CANDIDATES, FAULT_STEPS, GRID_STEPS, NOISE_STEPS, WINDOWS
from bench.quality.rows import JUDGE, Summary, cost, entropy, judged, plus_minus, rows_of
from bench.report.page import table
from edlm_engine.evaluation.plots import Point, draw

Records = dict[str, list[dict[str, float]]]


def over_steps(shown: Sequence[Summary], folder: Path, on: str) -> str:
    for name, x, label in (
        ("steps_cost.png", cost, "evaluations of a model per sequence"),
        ("steps_entropy.png", entropy, "token entropy, nats"),
    ):
        lines: dict[str, list[Point]] = {}
        for summary in shown:
            lines.setdefault(_family(summary), []).append((x(summary), *judged(summary)))
        draw(lines, folder / name, label, JUDGE, title=f"Quality over steps, {on}", log=x is cost)
    return f"""## Quality, entropy and cost over steps

MDLM is the denoiser alone, EDLM with 4 candidates at every step; "AR, left to right" is the AR
model of the energy, drawn token by token (with a cache its cost is one evaluation). "MDLM N=L"
reveals one token at a time: the denoiser's own joint. "KL to joint" is the distance of a sampler
without energy to it, in nats per token; "gap to joint" is -log p of the texts by the denoiser along
random orders, less that of the texts of its joint: 0 for equal laws, below 0 for likelier texts.

![quality against cost](steps_cost.png)
![quality against entropy](steps_entropy.png)

{rows_of(shown)}"""


def _family(summary: Summary) -> str:
    facts = summary["facts"]
    if "sampler" in facts:
        return summary["name"]
    if facts["energy"] == "none":
        return "MDLM" if facts["steps"] else "MDLM, one token at a time"
    return f"EDLM-{facts['energy']}"


def candidates_by_windows(shown: Sequence[Summary], folder: Path, on: str) -> str:
    cells = {(s["facts"]["num_candidates"], s["facts"].get("window", 1.0)): s for s in shown}
    alone = next((s for (k, _), s in cells.items() if k == 1), None)
    if alone is None:
        return ""

    def at(k: int, w: float) -> Summary | None:
        return alone if k == 1 or w == 0 else cells.get((k, w))

    def cell(summary: Summary | None) -> str:
        if summary is None:
            return "-"
        return f"{plus_minus(summary['measures']['judge'], 4)} / {entropy(summary):.2f}"

    lines: dict[str, list[Point]] = {}
    for w in WINDOWS[1:]:
        there = [(k, s) for k in CANDIDATES if (s := at(k, w))]
        lines[f"window {w}"] = [(float(k), *judged(s)) for k, s in there]
    title = f"Candidates by windows, EDLM-AR, {GRID_STEPS} steps, {on}"
    draw(lines, folder / "grid.png", "candidates K", JUDGE, title=title, log=True)
    header = ["K", *(f"window {w}" for w in WINDOWS)]
    return f"""## Candidates by windows

EDLM-AR with {GRID_STEPS} steps. In each cell the judge's nats per byte, and the token entropy in
nats. K = 1 or a window of 0 is the denoiser alone: one setting, shown in every such cell.

![candidates by windows](grid.png)

{table(header, [[str(k), *(cell(at(k, w)) for w in WINDOWS)] for k in CANDIDATES])}"""


def energies_over_time(records: Records, folder: Path, on: str) -> str:
    gap: dict[str, list[Point]] = {}
    ess: dict[str, list[Point]] = {}
    for label, own in records.items():
        for name in ("text", "candidates"):
            gap[f"{label}: {name}"] = over_time(own, name)
        for k in (4, 16):
            ess[f"{label}: {k} candidates"] = over_time(own, f"ess_{k}")
    share = "share t of positions masked"
    draw(gap, folder / "energies.png", share, "energy, nats", title=f"Energies over time, {on}")
    draw(ess, folder / "ess.png", share, "effective sample size", title=f"ESS over time, {on}")
    digits = {"text": 1, "candidates": 1, "spread": 1, "ess_4": 2, "ess_16": 2}
    header = ["energy", "t", "E of text", "E of candidates", "spread", "ESS of 4", "ESS of 16"]
    rows = []
    for label, own in records.items():
        points = {name: {x: rest for x, *rest in over_time(own, name)} for name in digits}
        for t in ((bin_ + 0.5) / BINS for bin_ in range(BINS)):
            found = [(points[name].get(t), d) for name, d in digits.items()]
            cells = ["-" if p is None else f"{p[0]:.{d}f} ±{p[1]:.{d}f}" for p, d in found]
            rows.append([label, f"{t:.2f}", *cells])
    count = max(map(len, records.values())) // DRAWS
    return f"""## Energies of text and of candidates, and the effective sample size

{count} windows of held-out text, {DRAWS} noisy states of each at stratified times, {POOL}
candidates of each state. Low energy is likely; the spread is the standard deviation among the
candidates of one state. Energies of different kinds differ by constants of xt: compare within a
line of the table.

![energies](energies.png)
![effective sample size](ess.png)

{table(header, rows)}"""


def released_faults(
    shown: Sequence[Summary], noise: Sequence[Summary], folder: Path, on: str
) -> str:
    points: dict[str, list[Point]] = {}
    for steps, some in ((FAULT_STEPS, shown), (NOISE_STEPS, noise)):
        for summary in some:
            points[f"{steps} steps: {summary['name']}"] = [(entropy(summary), *judged(summary))]
    title = f"Faults of the released code, one at a time, {on}"
    draw(points, folder / "faults.png", "token entropy, nats", JUDGE, title=title)
    tables = [rows_of(some, base=some[0], against="control") for some in (shown, noise) if some]
    both = "\n\n".join(tables)
    return f"""## What the faults of the released code do

The released loop restated, with one fault at a time and everything else right: the same models, the
same seeds. First EDLM-AR with 4 candidates at each of {FAULT_STEPS} steps, without carry-over; then
{NOISE_STEPS} steps without selection, where only the random numbers differ. The controls have the
law of the engine. Lower nats per byte at lower entropy are no better text by themselves.

![faults](faults.png)

{both}"""
