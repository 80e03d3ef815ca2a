"""`align evaluate`, `align score` and prompt benchmarks: any adapters on any prompts, paired."""
