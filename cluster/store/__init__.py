"""The artifact store: any S3 endpoint, or the embedded SeaweedFS server on loopback."""
