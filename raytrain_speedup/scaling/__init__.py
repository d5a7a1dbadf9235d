"""Where a run is placed: this process, a Tune trial, or a group of Ray Train workers."""
