"""The ops one by one, against plain PyTorch and against the limit."""

from __future__ import annotations

from bench.report.page import Groups, bandwidth, least_seconds, median, spread, table

OTHERS = ("phases: ", "scaling with ", "paper size", "steps of ", "limits")


def section(groups: Groups) -> str:
    parts = [
        "## Ops",
        "The limit is one read of the logits, or the matrix product where there is one.",
    ]
    for name, results in groups.items():
        if name.startswith(OTHERS):
            continue
        base = median(results[0]) / results[0]["extra_info"]["rows"]
        rows = []
        for b in results:
            info = b["extra_info"]
            ratio = median(b) / info["rows"] / base
            rows.append([info["name"], f"{ratio:.2f} x", spread(b), _of_limit(b, groups)])
        parts += [f"**{name}**", table(["", "time per row", "spread", "of the limit"], rows)]
    return "\n\n".join(parts) if len(parts) > 2 else ""


def _of_limit(benchmark: dict, groups: Groups) -> str:
    info, read = benchmark["extra_info"], bandwidth(groups)
    if read and "bytes" in info:
        return f"{info['bytes'] / median(benchmark) / read:.0%}"
    least = least_seconds(info.get("flops"), info.get("dtype"), groups)
    return f"{least / median(benchmark):.0%}" if least else "-"
