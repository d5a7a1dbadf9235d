"""The measurements that need a GPU, for one short loan of a machine: see README.md and `__main__.py`."""
