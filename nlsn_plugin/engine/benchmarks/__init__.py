"""Benchmarks of time and memory: the layer, the network, training updates, reading of samples."""
