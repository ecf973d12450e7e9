"""BasicSR models, one `*_model.py` each; they need basicsr and are registered by `nlsn_plugin.registry`."""
