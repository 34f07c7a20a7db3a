"""How calls reach a device: graphs, uploads, dtype, threads."""
