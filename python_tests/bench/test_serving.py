"""The load on a server: what is measured, the policies compared, and the page."""

import asyncio
import json

import pytest

from bench.serving.load import Clients, Kind, Sample, figures, quantiles, rss, served
from bench.serving.measure import CLOSED, MIXES, OPEN, POLICIES, measure
from bench.serving.models import simulated
from bench.serving.page import write
from bench.serving.server import RequestLevel
from bench.serving.virtual import STEP, virtual
from edlm_engine.serving.options import ServeOptions
from edlm_engine.serving.scheduler import Scheduler

pytestmark = pytest.mark.usefixtures("single_thread")


def test_quantiles():
    assert quantiles([]) is None
    assert quantiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert quantiles([float(i) for i in range(100, 0, -1)]) == {"p50": 51, "p95": 96, "p99": 100}


def test_figures_count_what_ended_well_until_it_ended():
    samples = [Sample("short", i / 2, 0.1, 1.0, 200) for i in range(10)]
    samples += [Sample("long", 4.0, None, 16.0, 200), Sample("short", 0.0, None, 0.0, 429)]
    found = figures(samples, 5.0)
    assert found["requests"] == 12 and found["failed"] == 1
    assert found["per_second"] == pytest.approx(11 / 20)  # the last one ended at 20
    assert found["short"]["latency"]["p99"] == 1.0 and found["long"]["latency"]["p50"] == 16.0
    assert found["all"]["count"] == 11 and found["all"]["first"]["p50"] == 0.1


@pytest.mark.parametrize(("kind", "beside"), [(Scheduler, True), (RequestLevel, False)])
def test_only_step_level_batching_lets_requests_join(kind, beside):
    scheduler = kind(simulated(0.01, length=16), ServeOptions(max_sequences=4))
    scheduler.start()
    try:
        long = scheduler.submit({"config": {"steps": None}, "seed": 1})  # 16 steps
        while long.begun is None:
            pass
        short = scheduler.submit({"config": {"steps": 1}, "seed": 2})
        short.result(20)
        assert long.done is not beside
        long.result(20)
    finally:
        scheduler.close()
        scheduler.join()


def test_virtual_time_counts_steps():
    alike = [Kind("short", 1.0, 1)]  # a step and, at the latest, what is left after it
    found = virtual("one", alike, 6, None)
    steps = round(found["seconds"] / STEP)
    assert 6 <= steps <= 12 and found["all"]["latency"]["p99"] == pytest.approx(found["seconds"])
    assert virtual("step", alike, 6, None)["seconds"] < 2.5 * STEP
    mixed = [Kind("short", 0.9, 2), Kind("long", 0.1, 16)]
    step, request = (virtual(policy, mixed, 60, 20.0) for policy in ("step", "request"))
    assert step["all"]["latency"]["p95"] < request["all"]["latency"]["p95"]
    assert step == virtual("step", mixed, 60, 20.0)


def test_a_server_under_load():
    kinds = [Kind("short", 0.5, 2), Kind("long", 0.5, 4)]
    with served("free", "step") as (host, port, pid):
        load = Clients((host, port), kinds)
        asyncio.run(load.closed(2, 0.3))
        closed = len(load.samples)
        opened = Clients((host, port), kinds)
        asyncio.run(opened.open(20.0, 0.5))
        assert rss(pid) > 10**7
    assert closed >= 2 and opened.samples
    for sample in load.samples + opened.samples:
        assert sample.status == 200 and 0 < sample.first <= sample.latency


def test_the_page_says_what_was_found(tmp_path, monkeypatch):
    def at(latency):
        samples = [Sample(kind, 0.0, latency / 2, latency, 200) for kind in ("short", "long")]
        return figures(samples, 10.0) | {"rate": 1.0, "clients": 3, "cpu_per_request": 0.1}

    by_name = {f"{policy} at {base}": at(1.0) for base, each in OPEN for policy in each}
    by_name["request at request"] = at(5.0)
    units = tmp_path / "units"
    units.mkdir()
    for mix in MIXES:
        key = mix.replace(" % ", "-")
        for policy in POLICIES:
            for kind in ("full", "virtual"):
                (units / f"{kind}-{key}-{policy}.json").write_text(json.dumps(at(1.0)))
        for name, found in by_name.items():
            for kind in ("open", "virtual"):
                file = units / f"{kind}-{key}-{name.replace(' ', '-')}.json"
                file.write_text(json.dumps(found))
    for model, (_, policies) in CLOSED.items():
        for policy, numbers in policies.items():
            for number in numbers:
                (units / f"closed-{model}-{policy}-{number}.json").write_text(json.dumps(at(1.0)))
    course = {"rss": [(i, 10**8 + 100 * i) for i in range(0, 36000, 360)], "failed": 0}
    (units / "memory.json").write_text(json.dumps(course | {"requests": 36000, "seconds": 9.0}))
    monkeypatch.setattr("bench.serving.measure.served", lambda *_: pytest.fail("made again"))
    page = write(tmp_path / "out", measure(units, 10.0, 36000), {"machine": "a test"})
    text = page.read_text()
    assert "20 % long: 5.0 x at p50, 5.0 x at p95" in text and "- machine: a test" in text
    words = " ".join(text.split())
    assert "an hour brings at 10 requests a second. None failed." in words
    assert "grew by 3.2 MB, 100 bytes a request" in words
    assert {"README.md", "results.json", "virtual.png", "http.png", "memory.png"} == {
        file.name for file in page.parent.iterdir()
    }
