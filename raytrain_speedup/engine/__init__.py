"""One training run, no Ray inside: loop, budget, checkpoints, measurement."""
