"""A leaderboard as one file of HTML that answers without a network: what is faster, by how much, how sure that is,
what it cost to find out and how to use it.

`content.py` gathers what it says, and computes nothing that the leaderboard computes; `page.py` lays it out, with
`chart.py` for the plots as SVG; `submission.py` is the same evidence for programs, to be judged again.
"""
