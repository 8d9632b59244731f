"""What every room of the house speaks of: trials, claims, outcomes, history, errors. Imports nothing of hpo.

The modules are light (no NumPy but in ``history``): the keeper beside every worker imports them.
"""
