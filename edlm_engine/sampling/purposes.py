"""What a random stream of a sequence is for: what follows the seed in its address."""

REVEAL, CANDIDATES, RESAMPLE, REMASK, ACCEPT, FINAL = range(6)
