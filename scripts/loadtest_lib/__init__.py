"""The parts of scripts/loadtest: client, workload, runner, stats, report, svg (also scripts/plot).

Python 3.8 or later and its standard library alone, so that it runs wherever there is a Python.
"""
