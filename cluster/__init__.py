"""The infrastructure: Ray sessions, resources, metrics and the object store. No science here."""

import os

from cluster.loopback import exempted_loopback

# At the import, so that it holds in every process that runs our code: drivers, what they start, and the actors of a
# cluster that somebody else started, whose own entries are kept.
os.environ.update(exempted_loopback(os.environ))
