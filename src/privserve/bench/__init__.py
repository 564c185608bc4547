"""Measure engines on this machine: python -m privserve.bench."""
