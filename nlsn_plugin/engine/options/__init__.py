"""Option files: found, compared with a schema, completed."""
