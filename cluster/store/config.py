"""The configuration of the artifact store."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cluster.base import Config


class StoreConfig(Config):
    """A local folder, or an S3-compatible store where ``endpoint`` is given.

    Credentials come from boto3's usual chain (``AWS_ACCESS_KEY_ID``, profiles, roles), never from a config file.
    """

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+/?$",
        description="URL of the S3 endpoint; null: the folder `data_dir`, which every machine of the cluster must share",
    )
    data_dir: Path = Field(
        Path("out/store"), description="the folder that holds the objects where there is no `endpoint`"
    )
    bucket: str = Field("safetydpo", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", description="of the endpoint")
    prefix: str = Field("", pattern=r"^[A-Za-z0-9._/-]*$", description="prefix of all keys")
    region: str = Field("us-east-1", description="of the bucket")
    connect_timeout_s: float = Field(5.0, gt=0)
    read_timeout_s: float = Field(60.0, gt=0)
    patience_s: float = Field(
        300.0,
        gt=0,
        description="how long a request is retried, with back-off and jitter, while the store is busy or unreachable; in "
        "a folder, the longest wait for another writer of the same key",
    )

    def full_key(self, key: str) -> str:
        """Return a key behind the prefix, as it is in the bucket or below the folder."""
        prefix = self.prefix.strip("/")
        return f"{prefix}/{key}" if prefix else key

    def absolute(self) -> StoreConfig:
        """Return the config for other processes, which may run in another working folder."""
        return self.model_copy(update={"data_dir": self.data_dir.expanduser().absolute()})
