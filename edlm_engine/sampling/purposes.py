"""What a random stream of a sequence is for: what follows the seed in its address."""

REVEAL, CANDIDATES, RESAMPLE, REMASK = range(4)
