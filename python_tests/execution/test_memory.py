"""What cannot fit the memory is refused before any of it is taken."""

import re

import pytest
import torch
from enumeration import TinyDenoiser
from tiny_models import HeadDenoiser, table_denoiser

from edlm_engine import Engine, GenerationConfig
from edlm_engine.execution import memory
from edlm_engine.execution.memory import available_bytes, require_memory

TINY = TinyDenoiser(vocab=4, length=2, mask_id=3)
CPU = torch.device("cpu")


@pytest.mark.parametrize("denoiser", [table_denoiser(TINY), HeadDenoiser(TINY)])
def test_a_billion_sequences_are_refused_with_the_figure(denoiser, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 << 30)
    message = (
        r"batch_size 1000000000 at length 2 .* at least \d+\.\d GiB, and cpu has 8\.0 GiB left"
    )
    with pytest.raises(MemoryError, match=message):
        Engine(denoiser).generate(10**9)


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_billion_steps_are_refused(monkeypatch, batch_invariant):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 << 30)
    config = GenerationConfig(steps=10**9, batch_invariant=batch_invariant)
    with pytest.raises(MemoryError, match=r"with steps 1000000000 needs at least 14\.9 GiB"):
        Engine(table_denoiser(TINY)).generate(1, config=config)


def test_what_fits_or_is_small_is_not_refused(monkeypatch):
    require_memory("this", 8 << 30, CPU) if available_bytes(CPU) >= 8 << 30 else None
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 << 30)
    require_memory("this", 8 << 30, CPU)
    with pytest.raises(MemoryError, match=r"this needs at least 8\.0 GiB, and cpu has 8\.0"):
        require_memory("this", (8 << 30) + 1, CPU)
    monkeypatch.setattr(memory, "available_bytes", lambda device: pytest.fail("was asked"))
    Engine(table_denoiser(TINY)).generate(3)
    require_memory("this", 1 << 30, CPU)


def test_the_least_of_the_limits_counts(monkeypatch, tmp_path):
    here = available_bytes(CPU)
    assert here > 0
    for name, text in (
        ("memory.max", "5000000"),
        ("memory.current", "4000000"),
        ("memory.stat", "anon 7\ninactive_file 300000"),
    ):
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert available_bytes(CPU) == 1_300_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(CPU) > 1_300_000


def test_available_memory_is_what_linux_says():
    lines = open("/proc/meminfo").read()  # noqa: SIM115
    kibibytes = int(re.search(r"MemAvailable: +(\d+) kB", lines)[1])
    assert available_bytes(CPU) <= 1.5 * 1024 * kibibytes
