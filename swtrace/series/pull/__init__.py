"""Pull: a rank copies each layer from its owner's shared memory, and the owner does nothing."""
