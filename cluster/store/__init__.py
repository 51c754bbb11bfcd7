"""The artifact store: a local folder, or any S3 endpoint."""
