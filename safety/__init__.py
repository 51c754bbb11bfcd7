"""The science of SafetyDPO as a library: it needs no cluster, no object store and no network."""
