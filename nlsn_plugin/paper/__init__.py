"""Results that the paper published, as data."""
