"""Timing in ABBA order, the statistics of it, and the gate between two runs. No torch."""
