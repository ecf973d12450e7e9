"""Option files: found, checked against a schema, completed."""
