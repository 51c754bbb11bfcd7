"""Models at ``s3://`` addresses: the science's fetcher for them, on the cluster's side of what it does not know."""

from __future__ import annotations

from pathlib import Path

from safety.fetchers import Choice, Place

PATIENCE_S = 300.0


def fetch_from_s3(place: Place, choose: Choice) -> Path:
    """Return this machine's copy of a model at an address; one process fetches it, and the others wait.

    Credentials come from boto3's usual chain, as the store's do.

    Raises:
        ClusterError: There is nothing at the address, or its store cannot be used.
        CorruptArtifact: What came is not what the store, or a manifest, says.
    """
    # Imported here for their weight: every process of a job or an endpoint enters the fetcher, and few use it.
    from cluster.store.config import StoreConfig
    from cluster.store.remote_files import fetch_files, parse_address

    region = {} if place.region is None else {"region": place.region}
    config = StoreConfig(endpoint=place.endpoint, patience_s=PATIENCE_S, **region)
    return fetch_files(parse_address(place.address, config), place.cache, choose)
