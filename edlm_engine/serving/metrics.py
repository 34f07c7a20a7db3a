"""What a server counts, for Prometheus."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edlm_engine.sampling.generation import Generation

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
STEP_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
RECENT = 10.0  # seconds, of which steps per second are told


class Metrics:
    """Of one scheduler, in a registry of its own: several may be in a process."""

    def __init__(self, budget: int | None):
        self.registry = CollectorRegistry()
        of = self.registry
        self.requests = Counter(
            "edlm_requests", "Requests, by outcome", ["endpoint", "outcome"], registry=of
        )
        self.request_seconds = Histogram(
            "edlm_request_seconds", "Whole requests that ended well", buckets=SECONDS, registry=of
        )
        self.first_text_seconds = Histogram(
            "edlm_first_text_seconds", "Until text of a stream", buckets=SECONDS, registry=of
        )
        self.queue_seconds = Histogram(
            "edlm_queue_seconds", "A sequence's wait", buckets=SECONDS, registry=of
        )
        self.waiting = Gauge("edlm_waiting_sequences", "Sequences in the queue", registry=of)
        self.running = Gauge("edlm_running_sequences", "Sequences in the batch", registry=of)
        self.batch_rows = Histogram(
            "edlm_batch_rows", "Sequences that took part in a step", buckets=ROWS, registry=of
        )
        self.steps = Counter("edlm_steps", "Steps of the batch", registry=of)
        self.step_seconds = Histogram(
            "edlm_step_seconds", "A step of the batch", buckets=STEP_SECONDS, registry=of
        )
        self.steps_per_second = Gauge(
            "edlm_steps_per_second", f"Steps of the batch in the last {RECENT:g} s", registry=of
        )
        self.nfe = Counter("edlm_nfe", "Denoiser evaluations of finished sequences", registry=of)
        self.energy_evaluations = Counter(
            "edlm_energy_evaluations", "Candidates scored of finished sequences", registry=of
        )
        self.tokens = Counter("edlm_tokens", "Tokens of answered requests", ["kind"], registry=of)
        self.ess = Histogram(
            "edlm_ess", "Effective sample size of an energy step, as a share of K",
            buckets=SHARES, registry=of,
        )  # fmt: skip
        self.memory_used = Gauge(
            "edlm_memory_estimate_bytes", "What running sequences are taken to need", registry=of
        )
        budget_bytes = Gauge("edlm_memory_budget_bytes", "What they may need", registry=of)
        budget_bytes.set(float("inf") if budget is None else budget)
        self._recent: deque[float] = deque(maxlen=10_000)
        self._ended: deque[float] = deque(maxlen=100)
        self.steps_per_second.set_function(self._rate)

    def watch(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        """Where the gauges look."""
        self.waiting.set_function(waiting)
        self.running.set_function(running)

    def stepped(self, rows: int, seconds: float) -> None:
        """After a step of so many sequences."""
        self.steps.inc()
        self.batch_rows.observe(rows)
        self.step_seconds.observe(seconds)
        self._recent.append(time.monotonic())

    def generated(self, generation: Generation, candidates: int) -> None:
        """After the end of a sequence."""
        self._ended.append(time.monotonic())
        self.nfe.inc(int(generation.nfe.sum()))
        self.energy_evaluations.inc(int(generation.energy_evaluations.sum()))
        for ess in generation.ess.flatten().tolist():
            if ess == ess:
                self.ess.observe(ess / candidates)

    def answered(self, prompt_tokens: int, tokens: int, seconds: float) -> None:
        """After a request that ended well."""
        self.tokens.labels("prompt").inc(prompt_tokens)
        self.tokens.labels("completion").inc(tokens)
        self.request_seconds.observe(seconds)

    def seconds_a_sequence(self) -> float:
        """Between the ends of two sequences, of late; 1 where there are too few to tell."""
        ended = list(self._ended)
        return (ended[-1] - ended[0]) / (len(ended) - 1) if len(ended) > 1 else 1.0

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def _rate(self) -> float:
        since = time.monotonic() - RECENT
        return sum(moment >= since for moment in list(self._recent)) / RECENT
