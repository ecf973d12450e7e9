"""Upscaling of any picture: in memory or file by file, with comparisons."""
