"""Pictures; see `jaxinit.plot`."""
