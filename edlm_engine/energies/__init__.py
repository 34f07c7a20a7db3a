"""Energies of complete candidates: what the engine asks of one, and those that are given."""
