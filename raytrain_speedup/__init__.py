"""raytrain_speedup: how much faster can this model train on this data without losing accuracy?"""

__version__ = "0.1.0"
