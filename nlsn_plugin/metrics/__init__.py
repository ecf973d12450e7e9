"""How figures are measured: named protocols say what is compared; the metrics themselves are BasicSR's."""
