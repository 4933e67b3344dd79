"""Hook of MkDocs: links from pages to files outside docs/ go to the repository, if its address is known, and images
outside docs/ become part of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File


_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>\.\./[^)\s]+)\)")
_IMAGE = re.compile(r"(?P<text>!\[[^\]]*\])\((?P<target>\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any, **_: Any) -> str:
    """Rewrite the links of one page."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewrite(match: re.Match) -> str:
        file = posixpath.normpath(posixpath.join("docs", folder, match["target"]))
        if file.startswith("docs/"):
            return match[0]
        return f"[{match['text']}]({config.repo_url}/blob/main/{file})" if config.repo_url else match["text"]

    def include(match: re.Match) -> str:
        file = posixpath.normpath(posixpath.join("docs", folder, match["target"]))
        if file.startswith("docs/"):
            return match[0]
        if files.get_file_from_path(file) is None:
            source = Path(config.docs_dir).parent / file
            files.append(File.generated(config, file, abs_src_path=str(source)))
        return f"{match['text']}({posixpath.relpath(file, folder or '.')})"

    return _IMAGE.sub(include, _LINK.sub(rewrite, markdown))
