"""Prints what ptxas said of every kernel, and fails where one spills registers to local memory.

Usage: kernel_resources.py BUILD ARCHITECTURE...: a folder that holds the *.ptxas reports of the
build, and the architectures (90, 100-real) for which every kernel must be there.
"""

import re
import subprocess
import sys
from pathlib import Path

WANTED_KERNELS = {
    "stream_keys_kernel",
    "reveal_steps_kernel",
    "place_candidates_kernel",
    "resample_kernel",
    "residual_draw_kernel",
    "reveal_chosen_kernel",
    "sum_log_probs_kernel",
    "sum_rows_kernel",
    "sample_candidates_kernel",
    "sample_weights_kernel",
    "token_log_probs_kernel",
}

ENTRY = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def kernel_name(symbol: str) -> str:
    """`sample_candidates_kernel<float, 8>` of a mangled name."""
    full = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    return re.sub(r"edlm::(cuda::)?|^void |\(.*", "", full.strip())


def main(build: Path, architectures: list[str]) -> int:
    wanted = [f"sm_{a.split('-')[0]}" for a in architectures if not a.endswith("-virtual")]
    table: dict[str, dict[str, str]] = {}
    failures = []
    for report in sorted(build.rglob("*.ptxas")):
        for entry in ENTRY.finditer(report.read_text()):
            name, arch = kernel_name(entry["symbol"]), entry["arch"]
            shared = re.search(r"(\d+) bytes smem", entry["rest"])
            cell = f"{entry['registers']} registers, {shared[1] if shared else 0} B shared"
            if int(entry["stack"]) or int(entry["stores"]) or int(entry["loads"]):
                failures.append(f"{name} on {arch} spills to local memory")
                cell += f", {entry['stack']} B LOCAL"
            table.setdefault(name, {})[arch] = cell
    width = max(map(len, table), default=0)
    for name, row in sorted(table.items()):
        print(f"{name:{width}}  " + "   ".join(f"{a}: {row.get(a, 'missing')}" for a in wanted))
        failures += [f"{name} is missing for {a}" for a in wanted if a not in row]
    print("Row kernels take shared memory at launch besides: about V / 7 bytes a row.")
    kernels = {name.split("<")[0] for name in table}
    failures += [f"{name} is missing" for name in sorted(WANTED_KERNELS - kernels)]
    for failure in failures:
        print(f"FAILED: {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
