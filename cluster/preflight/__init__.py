"""What can be known about a cluster and a store in seconds, before any work: checks that pass, warn or fail."""
