"""What must hold of an export: pytest suites, benchmarks and mutants."""
