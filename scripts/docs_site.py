"""A hook of mkdocs (mkdocs.yml): what a link of README.md or docs/ leads to in the tree is on the site too.

The site holds the pages of docs/, README.md as its first page, and every other file that one of these links: Markdown as a
page, sources as a page with their text. Links are written for the tree; here they are led to the place on the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")
LANGUAGES = {".h": "cpp", ".cuh": "cpp", ".cu": "cpp", ".cpp": "cpp", ".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml"}
FENCE = "`" * 6  # longer than any within the text

paths = {}  # place on the site → path in the tree, of pages


def place(path):
    """Where a file of the tree stands on the site."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(".md") else path + ".md"


def targets(path):
    """The files that a page of the tree links."""
    for target in LINK.findall((ROOT / path).read_text()):
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if (ROOT / linked).is_dir():
            raise PluginError(f"{path} links the folder {linked}; link a file of it")
        if (ROOT / linked).is_file():  # mkdocs itself tells of others
            yield linked


def content(path):
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n{FENCE}{language}\n{text}\n{FENCE}\n"


def on_files(files, config):
    paths.clear()
    pages = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    for path in pages:  # grows
        paths[place(path)] = path
        if not path.startswith("docs/"):
            files.append(File.generated(config, place(path), content=content(path)))
        if path.endswith(".md"):
            pages += [target for target in dict.fromkeys(targets(path)) if not target.startswith("docs/") and target not in pages]
    return files


def on_page_markdown(markdown, page, **_):
    path, here = paths[page.file.src_uri], posixpath.dirname(page.file.src_uri)
    if not path.endswith(".md"):
        return markdown

    def moved(link):
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[0]))
        return posixpath.relpath(place(linked), here or ".") if (ROOT / linked).is_file() else link[0]

    return LINK.sub(moved, markdown)
