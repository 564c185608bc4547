"""What the site needs beside mkdocs.yml: pages are written for readers of the repository first.

Their links lead out of docs/, to files of the repository; the site gets those files under
`repository/`. And they are indented as CommonMark has it, by as much as a list's marker is wide;
Python-Markdown wants four spaces.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = "repository"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
MARKER = re.compile(r"( *)([-*] |\d+\. )(?=\S)")
FENCE = re.compile(r" *(```|~~~)")
START = ("CHANGELOG.md", "CONTRIBUTING.md")
"""What the site's navigation names itself."""


def on_files(files: Any, config: Any) -> Any:
    """Add the files of the repository that pages link to, and those that these link to."""
    from mkdocs.structure.files import File, InclusionLevel

    pages = sorted((ROOT / "docs").glob("*.md"))
    waiting, seen = [*START, *(f"docs/{page.name}" for page in pages)], set[str]()
    while waiting:
        path = waiting.pop()
        if path in seen or not (ROOT / path).is_file():  # mkdocs says what is not there
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            level = InclusionLevel.INCLUDED if path in START else InclusionLevel.NOT_IN_NAV
            files.append(
                File.generated(
                    config, f"{ELSEWHERE}/{path}", abs_src_path=str(ROOT / path), inclusion=level
                )
            )
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            waiting += [repository_path(path, link) for link in links(text)]
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return a page with links and indentation as the site needs them."""
    uri = page.file.src_uri
    inside = uri.removeprefix(f"{ELSEWHERE}/")
    path = inside if inside != uri else f"docs/{uri}"
    return indented(relinked(markdown, path))


def links(text: str) -> list[str]:
    """The relative links of a page, without what follows a #."""
    return [found.group(1) for line in _prose(text) for found in LINK.finditer(line)]


def repository_path(page: str, link: str) -> str:
    """What a link of a page leads to, from the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def site_uri(path: str) -> str:
    """Where the site has a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{ELSEWHERE}/{path}"


def relinked(text: str, page: str) -> str:
    """Return a page of the repository with the links that it has on the site."""
    home = posixpath.dirname(site_uri(page))

    def replaced(found: re.Match[str]) -> str:
        target = site_uri(repository_path(page, found.group(1)))
        return posixpath.relpath(target, home or ".") + (found.group(2) or "")

    return LINK.sub(replaced, text)


def indented(text: str) -> str:
    """Return a page whose lists are indented by four spaces a level, with a blank line before."""
    lines: list[str] = []
    texts: list[int] = []
    """Where the text of each list begins that the line is in."""
    fence, above, parted = "", "", True
    """parted: whether there was a blank line since the last marker."""
    for line in text.split("\n"):
        column = len(line) - len(line.lstrip())
        marker = None if fence else MARKER.match(line)
        if not fence and line.strip():
            # Text that goes on a paragraph may be indented less, and is in the list all the same.
            ends = marker or not above.strip() or line.startswith(("#", "|", "```"))
            while texts and column < texts[-1] and ends:
                texts.pop()
        rest = column - (texts[-1] if texts else 0)
        if rest >= 4:  # a line of code, whatever it begins with
            marker = None
        if marker and parted and above.strip():
            lines.append("")
        lines.append(" " * (4 * len(texts) + max(0, rest)) + line.lstrip() if line.strip() else "")
        if marker:
            texts.append(column + len(marker.group(2)))
        else:
            fence = _fence_after(fence, line)
        above, parted = line, not marker and (parted or not line.strip())
    return "\n".join(lines)


def _fence_after(fence: str, line: str) -> str:
    """The fence of the code that goes on below this line; "" for none."""
    if not fence:
        opened = FENCE.match(line)
        return opened.group(1) if opened else ""
    return "" if line.strip() == fence else fence


def _prose(text: str) -> Iterator[str]:
    """The lines of a page that are no fenced code."""
    fence = ""
    for line in text.split("\n"):
        inside, fence = fence, _fence_after(fence, line)
        if not inside and not fence:
            yield line
