"""The page at ``/``: one self-contained file, whose content security policy allows requests to this endpoint only."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from serve.endpoint_config import EndpointConfig

SOURCE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def _hash_of(tag: str) -> str:
    """Return the hash of the page's only inline ``tag`` for the policy; its text must hold no template variables."""
    match = re.search(rf"<{tag}>(.*?)</{tag}>", SOURCE, re.DOTALL)
    if match is None or "{{" in match[1] or "{%" in match[1]:
        raise ValueError(f"page.html must hold one <{tag}> without template variables")
    return f"'sha256-{base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()}'"


PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; "
        "img-src data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


TEMPLATE = Environment(autoescape=True, undefined=StrictUndefined).from_string(SOURCE)


def render_page(config: EndpointConfig) -> str:
    """Return the page's HTML for an endpoint; every value from the config is escaped."""
    return TEMPLATE.render(config=config)
