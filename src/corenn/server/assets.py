"""The console: files that a browser gets as they are, and the headers that keep everything else out of that page.

The page loads nothing but these files, asks nobody but this server, and runs no script that stands in data: the policy
forbids scripts and styles within the page, and texts as markup altogether.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .visit import Reply

FOLDER = Path(__file__).with_name("console")
PAGE = "console.html"
FORMS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
FILES = tuple(sorted(path.name for path in FOLDER.iterdir() if path.suffix in FORMS and path.name != PAGE))


@cache
def asset(name: str) -> Reply:
    """One of FILES, or the page itself."""
    path = FOLDER / name
    return Reply(path.read_bytes(), FORMS[path.suffix], headers=HEADERS)
