"""What is said of generations afterwards; no generation needs any of it."""
