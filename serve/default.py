"""The endpoint with every setting at its default, as the application object that ``serve build`` needs."""

from __future__ import annotations

from serve.app import build

app = build({})
