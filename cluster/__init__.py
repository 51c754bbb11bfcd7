"""The infrastructure: Ray sessions, resources, metrics and the object store. No science here."""
