"""Texts from Debian packages and from Python's own library, as plain prose or code.

`debian-reference` is cut in two: calibration takes the even chapters, tests the odd ones. Of Python's library, too,
calibration takes other modules than tests do.
"""

from __future__ import annotations

import html.parser
import re
import subprocess
import sysconfig
from pathlib import Path

PACKAGES = {"debian-reference": "debian-reference-en", "debian-handbook": "debian-handbook"}
_PLACES = {"debian-reference": "usr/share/debian-reference/ch*.en.html",
           "debian-handbook": "usr/share/doc/debian-handbook/html/en-US/*.html"}


class _Prose(html.parser.HTMLParser):
    """The text of paragraphs, list items, headings and terminals; a blank line between them."""

    _BLOCKS = ("p", "li", "pre", "h1", "h2", "h3", "h4", "dt", "dd", "td", "div")
    _SKIPPED = ("script", "style", "title", "head")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skip = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._skip += tag in self._SKIPPED
        if tag in self._BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in self._SKIPPED

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.parts.append(data)


def prose(page: str) -> str:
    parser = _Prose()
    parser.feed(page)
    text = "".join(parser.parts)
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", text).strip()


def _pages(name: str, cache: Path) -> list[str]:
    folder = cache / name
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        package = PACKAGES[name]
        if not list(cache.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "-qq", package], cwd=cache, check=True)
        deb = next(cache.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", deb.name, name], cwd=cache, check=True)
    pages = sorted(folder.glob(_PLACES[name]))
    if not pages:
        raise FileNotFoundError(f"no pages of {name} in {folder}")
    return [prose(page.read_text(errors="replace")) for page in pages]


def load(name: str, cache: Path) -> str:
    """debian-reference/calibrate, debian-reference/test, debian-handbook, python-source or python-source/calibrate."""
    if name == "python-source/calibrate":
        library = Path(sysconfig.get_paths()["stdlib"])
        modules = ("smtplib", "shutil", "random", "statistics", "subprocess", "threading", "typing", "urllib/request",
                   "uuid", "weakref", "xmlrpc/client", "socketserver", "textwrap", "unittest/mock")
        return "\n\n".join((library / f"{m}.py").read_text() for m in modules)
    if name == "python-source":
        library = Path(sysconfig.get_paths()["stdlib"])
        modules = ("argparse", "ast", "asyncio/base_events", "calendar", "configparser", "difflib", "email/message",
                   "fractions", "heapq", "http/client", "inspect", "logging/__init__", "pickle", "tarfile", "zipfile")
        return "\n\n".join((library / f"{m}.py").read_text() for m in modules)
    base, _, part = name.partition("/")
    pages = _pages(base, cache)
    if part:
        pages = pages[{"calibrate": 0, "test": 1}[part]::2]
    return "\n\n".join(pages)
