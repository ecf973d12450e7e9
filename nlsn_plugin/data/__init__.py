"""Data sets in BasicSR's layout, made from folders of photographs (`prepare`) or from shipped ones (`sample`)."""
