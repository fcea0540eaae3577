"""A strict reader of the report's HTML, and what it may never ask for."""

from __future__ import annotations

import html.parser
import re


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and gathers attributes, all text and the text outside <details>."""

    VOID = {"meta", "link", "br", "hr", "img", "input"}

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text, self.outside, self.svg_text = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if {"style", "title"} & set(self.open[-1:]):
            return
        self.text.append(data)
        if "details" not in self.open:
            self.outside.append(data)
        if "svg" in self.open:
            self.svg_text.append(data.strip())


def outside(text):
    """Every address in the page that a browser might fetch or follow and that does not stay on the page."""
    found = [target for target in re.findall(r"url\(([^)]*)\)", text) if not target.strip("'\" ").startswith("#")]
    found += re.findall(r"@import[^;]*|@font-face|<(?:script|iframe|img|base|object|embed|video|audio)\b", text)
    for tag, attrs in Page(text).tags:
        for name in ("href", "xlink:href", "src", "srcset", "data", "action", "poster", "ping"):
            if name in attrs and not (attrs[name] or "").startswith(("#", "data:,")):
                found.append(f"{tag} {name}={attrs[name]}")
        found += [f"{tag} {name}" for name in attrs if name.startswith("on")]
        if tag == "meta" and attrs.get("http-equiv", "").lower() == "refresh":
            found.append("meta refresh")
    return found
