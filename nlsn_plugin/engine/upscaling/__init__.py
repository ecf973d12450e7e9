"""Any picture enlarged: in memory, file by file, with comparisons."""
