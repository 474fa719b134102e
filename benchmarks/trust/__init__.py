"""Can a number be believed? Simulations and planted models behind docs/trust.md: `python -m benchmarks.trust [parts]`.

Each part draws data whose truth is known, asks the package's own functions about it and counts how often they are
right.
"""
