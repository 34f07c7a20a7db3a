"""A server under load on loopback: throughput, latency and memory."""
