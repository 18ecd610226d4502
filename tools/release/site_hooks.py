"""What mkdocs does beside its plugins: formulas as MathML, and files of the repository that pages point to.

MathML needs no script and no font at view time, unlike MathJax and KaTeX. The site carries copies of files outside docs,
so that one relative link works on a code host and in the site.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_CODE = re.compile(r"<code>[^<]*</code>")
_UPWARDS = re.compile(r"\]\(((?:\.\./)+[\w./-]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside docs that pages link to, at the place that they have in the repository."""
    docs = Path(config.docs_dir)
    for page in list(files.documentation_pages()):
        for _, target in _outside(page.content_string, Path(page.abs_src_path).parent, docs):
            place = target.relative_to(docs.parent).as_posix()
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Let links out of docs lead to the copies: docs is the root of the site."""
    docs = Path(config.docs_dir)
    folder = (docs / page.file.src_uri).parent
    for link, _target in _outside(markdown, folder, docs):
        markdown = markdown.replace(f"]({link}", f"]({link.removeprefix('../')}")
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Write each formula that arithmatex found as MathML, and bars in code as they are meant.

    Code hosts need bars in tables escaped, inside code too; Python-Markdown shows the backslash there.
    """
    html = _CODE.sub(lambda x: x[0].replace("\\|", "|"), html)
    return _FORMULA.sub(
        lambda x: convert(unescape(x[3]), display="block" if x[2] == "[" else "inline"), html
    )


def _outside(text: str, folder: Path, docs: Path) -> Iterator[tuple[str, Path]]:
    """Yield the links from a page in a folder to files that lie outside docs."""
    for link in sorted(set(_UPWARDS.findall(text))):
        target = (folder / link).resolve()
        if not target.is_relative_to(docs) and target.is_file():
            yield link, target
