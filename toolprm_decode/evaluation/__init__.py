"""What answers are worth: strategies on suites of questions, and the rules of the benchmarks."""
