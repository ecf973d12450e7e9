"""Measurement of time and peak memory, and a description of the machine."""
