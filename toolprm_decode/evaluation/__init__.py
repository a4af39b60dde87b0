"""What an answer is worth by the rules of the benchmarks."""
