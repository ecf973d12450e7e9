"""What the figures are measured on, by named protocols; the metrics themselves are BasicSR's."""
