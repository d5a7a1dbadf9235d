"""What a run costs: seconds of work, FLOPs, memory, reference steps, and how much faster one is than another."""
