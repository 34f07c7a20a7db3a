"""The page: tables and plots of a server under load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report.page import table
from bench.serving.load import Kind
from bench.serving.measure import CLOSED, COUNT, LONG, MANY, MIXES, SHORT, SOFT
from bench.serving.models import STEP
from bench.serving.server import ROWS
from bench.serving.virtual import STEP as VIRTUAL_STEP
from edlm_engine.checkpoints.files import write_json

NAMES = {"step": "step-level", "request": "request-level", "one": "one at a time"}
MODELS = {
    "simulated": f"simulated device, {STEP * 1000:g} ms a step whatever the rows, "
    f"{CLOSED['simulated'][0]}",
    "text8": "text8's size: V = 28, L = 256, random DiT of 2 blocks of width 128, on the CPU",
    "bundled": "bundled denoiser without its energy, L = 128, on the CPU",
}
HEAD = f"""# A server under load

`edlm serve` in a process of its own, clients in another, over HTTP on loopback. Requests are
streamed; *short* ones take {SHORT} steps, *long* ones {LONG}; up to {ROWS} run at a time. Seconds
count from the moment a request was due, not from when a busy client could send it."""
QUEUEING = f"""## Step-level against request-level batching

On a simulated device: a step takes the same time however many rows it has, as on a GPU that is not
full. So these are figures of queueing, and no claim about any GPU.

- *step-level*: the server as it is. A request joins the running batch at its next step.
- *request-level*: the same, but requests join only when the batch has run to its end. A text is
  still sent as soon as it is done, so this is the better kind of request-level batching.
- *one at a time*: the same with one row.

Requests come as a Poisson process, the same ones for both, at {SOFT:.0%} of what *request-level*
batching can do at most (equal throughput), and at {SOFT:.0%} of what *step-level* batching can."""
VIRTUAL = f"""### In virtual time

The real scheduler and session with a clock that is not: a step takes {VIRTUAL_STEP * 1000:g} ms
and all else nothing. {COUNT["step"]:,} requests each; capacity is what is done of as many that
come at once. Exact for its seeds, on any machine."""
HTTP = f"""### Over HTTP

The real server and a device that sleeps {STEP * 1000:g} ms in every step. Capacity is what {MANY}
clients in a closed loop get (one client for one at a time). `load` is the machine's load average at
the end of a line, to be held against its cores: where it is above them, a step also waits for a
processor, lines of different load do not compare, and the table above is the one to read. Where
less is done than asked for, the queue grew until the last request."""
RATIOS = "Latency of request-level over step-level batching, at equal arrivals:"
CLIENTS = """## Against the number of clients

A closed loop: each client asks again as soon as it is answered. On a CPU a step of many rows costs
about as much as these rows one by one, so batching gains little there but fairness. Whatever else
ran on the machine is in these seconds."""
MEMORY = """## Memory

Resident memory of the server over {requests} requests of a model that costs nothing, a quarter
of them streamed, as fast as they went ({seconds:.0f} s): what an hour brings at {rate:.0f}
requests a second. {failed} failed. After the first tenth it grew by {growth:.1f} MB, {each:.0f}
bytes a request.

![memory over requests](memory.png)"""


def write(folder: Path, results: Mapping[str, Any], facts: Mapping[str, str]) -> Path:
    """README.md, results.json and the plots; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"facts": dict(facts), **results})
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    parts = [HEAD, listed, QUEUEING]
    for clock, about in (("virtual", VIRTUAL), ("http", HTTP)):
        by = {mix: clocks[clock] for mix, clocks in results["queueing"].items()}
        parts += [about, _capacities(by), _open(by), f"![latency by policy]({clock}.png)"]
        _plot_queueing(by, folder / f"{clock}.png")
    parts.append(CLIENTS)
    parts += [f"{MODELS[model]}:\n\n{_clients(by)}" for model, by in results["closed"].items()]
    parts.append(MEMORY.format(**_course(results["memory"])))
    _plot_memory(results["memory"], folder / "memory.png")
    page = folder / "README.md"
    temporary = page.with_suffix(".tmp")
    temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    temporary.replace(page)
    return page


def _capacities(queueing: Mapping[str, Any]) -> str:
    rows = [
        [mix, *(f"{by['full'][policy]['per_second']:.2f}" for policy in NAMES)]
        for mix, by in queueing.items()
    ]
    return table(["capacity, requests a second", *NAMES.values()], rows)


def _open(queueing: Mapping[str, Any]) -> str:
    rows = []
    for mix, by in queueing.items():
        kinds: list[Kind] = MIXES[mix]
        for name, found in by["open"].items():
            policy, _, base = name.partition(" at ")
            at = f"{SOFT:.0%} of {NAMES[base]}"
            least = [
                _seconds(found.get(kind, {}).get("latency"), "p95")
                if len(kinds) > 1
                else ("-" if kind == "long" else _seconds(found["all"]["latency"], "p95"))
                for kind in ("short", "long")
            ]
            rows.append(
                [mix, NAMES[policy], at, f"{found['rate']:.2f}", f"{found['per_second']:.2f}"]
                + [_seconds(found["all"]["latency"], q) for q in ("p50", "p95", "p99")]
                + least
                + [_seconds(found["all"]["first"], q) for q in ("p50", "p95")]
                + ([f"{found['load']:.0f}"] if "load" in found else [])
            )
    header = ["requests", "batching", "at", "asked/s", "done/s"]
    header += ["latency p50", "p95", "p99", "short p95", "long p95", "first text p50", "p95"]
    header += (
        ["load"]
        if any("load" in f for by in queueing.values() for f in by["open"].values())
        else []
    )
    return table(header, rows) + "\n\n" + _ratios(queueing)


def _ratios(queueing: Mapping[str, Any]) -> str:
    lines = []
    for mix, by in queueing.items():
        at = [
            by["open"][f"{policy} at request"]["all"]["latency"] for policy in ("request", "step")
        ]
        ratios = {q: at[0][q] / at[1][q] for q in at[0]}
        told = ", ".join(f"{ratio:.1f} x at {q}" for q, ratio in ratios.items())
        lines.append(f"- {mix}: {told}")
    return (
        "Latency of request-level over step-level batching, at equal throughput:\n\n"
        + "\n".join(lines)
    )


def _clients(by: Mapping[str, Any]) -> str:
    rows = [
        [NAMES[policy], str(found["clients"]), f"{found['per_second']:.2f}"]
        + [_seconds(found["all"]["latency"], q) for q in ("p50", "p95", "p99")]
        + [_seconds(found["all"]["first"], q) for q in ("p50", "p95")]
        for policy, each in by.items()
        for found in each
    ]
    header = ["batching", "clients", "done/s", "latency p50", "p95", "p99", "first text p50", "p95"]
    return table(header, rows)


def _seconds(quantiles: Mapping[str, float] | None, q: str) -> str:
    return "-" if not quantiles else f"{quantiles[q]:.2f} s"


def _course(memory: Mapping[str, Any]) -> dict[str, Any]:
    seen = memory["rss"]
    after = seen[len(seen) // 10]
    growth = seen[-1][1] - after[1]
    return {
        "requests": f"{memory['requests']:,}",
        "seconds": memory["seconds"],
        "rate": memory["requests"] / 3600,
        "failed": memory["failed"] or "None",
        "growth": growth / 1e6,
        "each": growth / (seen[-1][0] - after[0]),
    }


def _plot_queueing(queueing: Mapping[str, Any], file: Path) -> None:
    """p50, p95 and p99 of both policies at equal throughput, a panel for each mix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (mix, by) in zip(figure.subplots(1, len(queueing)), queueing.items(), strict=True):
        for shift, policy in ((-0.2, "step"), (0.2, "request")):
            quantiles = by["open"][f"{policy} at request"]["all"]["latency"]
            places = [place + shift for place in range(len(quantiles))]
            axes.bar(places, list(quantiles.values()), 0.4, label=NAMES[policy])
            axes.set_xticks(range(len(quantiles)), list(quantiles))
        axes.set_title(mix)
    figure.axes[0].set_ylabel("latency, seconds")
    figure.axes[0].legend()
    figure.savefig(file, dpi=100)


def _plot_memory(memory: Mapping[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*((number, size / 1e6) for number, size in memory["rss"]), strict=True))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests")
    axes.set_ylabel("resident, MB")
    figure.savefig(file, dpi=100)
