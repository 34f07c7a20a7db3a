"""Adapters to the loops of others, experimental: each is optional and known to no other room."""
