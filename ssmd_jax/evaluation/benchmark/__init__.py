"""The benchmark harness: seconds, operations and bytes of sampling, training and likelihood, beside the device's own
ceilings. `harness.benchmark` runs it; one idea a file."""
