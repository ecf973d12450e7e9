"""Time, peak memory, and the machine that they were measured on."""
