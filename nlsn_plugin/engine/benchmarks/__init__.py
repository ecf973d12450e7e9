"""Times and memory: of the layer, the network, training updates, reading samples."""
