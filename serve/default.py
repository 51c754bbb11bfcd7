"""The endpoint with every setting at its default, as the object that ``serve build serve.default:app`` wants."""

from __future__ import annotations

from serve.app import build

app = build({})
