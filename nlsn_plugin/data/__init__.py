"""Data as BasicSR's datasets read it: made from folders of photographs (`prepare`) or from shipped ones (`sample`)."""
