"""Where things run and where artifacts live: Ray sessions, resources, the object store. No science here."""
