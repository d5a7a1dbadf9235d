"""What a run goes on from, and how it is kept.

checkpoint    what is in one, taken from a run and put back into one
store         the folder of a run's checkpoints: whole or not there, the newest whole one, the last few
saver         writes beside the steps, one at a time
outage        what to say and do where storage is away or full
"""
