"""Hook of MkDocs: links from pages to files outside docs/ go to the repository, if its address is known."""

from __future__ import annotations

import posixpath
import re
from typing import Any


_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Rewrite the links of one page."""

    def rewrite(match: re.Match) -> str:
        file = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match["target"]))
        if file.startswith("docs/"):
            return match[0]
        return f"[{match['text']}]({config.repo_url}/blob/main/{file})" if config.repo_url else match["text"]

    return _LINK.sub(rewrite, markdown)
