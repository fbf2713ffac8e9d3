"""What lets Sphinx build the pages as they are: the navigation is the front page, links may leave docs/."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".md": "markdown"}


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the hooks."""
    app.connect("source-read", add_navigation)
    app.add_transform(FindSources)
    app.connect("missing-reference", link_to_source)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", add_index)
    return {"parallel_read_safe": True}


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """The pages as the front page lists them, under its headings; Sphinx warns about one that it forgets."""
    if docname == app.config.root_doc:
        source[0] += "".join(navigation(source[0]))


def navigation(text: str) -> Iterator[str]:
    """Sphinx's trees of contents for a page of lists: an item's first link is a page."""
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        pages = re.findall(r"^- \[[^\]]+\]\(([\w/]+)\.md\)", body, flags=re.MULTILINE)
        if pages:
            yield "\n".join(["\n```{toctree}", ":hidden:", f":caption: {heading}", *pages, "```\n"])


class FindSources(SphinxTransform):
    """Finds the links to files and folders of the repository that are no pages; their text becomes one."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Mark such links. One that leads nowhere stays as it is, and is warned about."""
        links = [*self.document.findall(addnodes.download_reference), *self.document.findall(addnodes.pending_xref)]
        for link in links:
            path = self._source(link) if link.get("reftype") == "myst" else None
            if path is not None:
                found = addnodes.pending_xref("", *link.children, refdoc=self.env.docname, reftype="source")
                found["reftarget"] = path.relative_to(ROOT).as_posix()
                link.replace_self(found)

    def _source(self, link: nodes.Element) -> Path | None:
        """The existing file or folder that a link leads to; None for pages."""
        is_page = link.get("refdomain") == "doc"
        if is_page and link["reftarget"] in self.env.found_docs:
            return None
        target = f"{link['reftarget']}.md" if is_page else link["reftarget"].partition("#")[0]
        path = Path(self.env.srcdir, self.env.docname).parent.joinpath(target).resolve()
        return path if target and path.exists() and path.is_relative_to(ROOT) else None


def link_to_source(app: Sphinx, env: BuildEnvironment, link: nodes.Element, text: nodes.Element) -> nodes.Node | None:
    """The link to the page of a file's text."""
    if link.get("reftype") != "source":
        return None
    uri = app.builder.get_relative_uri(link["refdoc"], _page_of(link["reftarget"]))
    return nodes.reference("", "", text, refuri=uri, internal=True)


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    """A page for every file or folder that a page links to: its text, or the names of what is in it."""
    assert isinstance(app.builder, StandaloneHTMLBuilder)  # no other asks for pages
    links = (link for page in app.env.found_docs for link in app.env.get_doctree(page).findall(addnodes.pending_xref))
    for target in sorted({link["reftarget"] for link in links if link.get("reftype") == "source"}):
        path = ROOT / target
        text = path.read_text(encoding="utf-8") if path.is_file() else "\n".join(_names_in(path))
        body = app.builder.highlighter.highlight_block(text, LANGUAGES.get(path.suffix, "none"))
        yield _page_of(target), {"title": target, "body": f"<h1>{html.escape(target)}</h1>{body}"}, "page.html"


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name != "__pycache__")


def _page_of(target: str) -> str:
    return f"source/{target}"


def add_index(app: Sphinx, exception: Exception | None) -> None:
    """Servers and browsers open index.html; the front page is called README, for code hosts."""
    if exception is None and app.builder.format == "html":
        shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")
