"""What MkDocs does not do by itself: pages that lie outside docs/, and links that leave it.

Pages link to each other, to the README, to notebooks and to files of the repository by relative paths, as a repository
browser follows them. On the site the pages of `OUTSIDE` have the same paths below its root, docs/ is the root, and a
notebook is a page of its cells and what they printed. Other files and folders that are linked to are copied, a folder
with a page that lists its files.
"""

import json
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
LINK = re.compile(r"(?<=\]\()(?!#|[a-z]+:)([^)#\s]+)")
FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)


def on_files(files, config):
    """Adds the pages of `OUTSIDE` and of notebooks, then what they and the others link to outside docs/."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, content=(ROOT / path).read_text(encoding="utf-8")))
    for path in (ROOT / "docs").glob("notebooks/*.ipynb"):
        name = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=page_of(json.loads(path.read_text(encoding="utf-8")))))
    for page in files.documentation_pages():
        for target in targets(page.src_uri, page.content_string):
            if not published(target):
                add(files, config, target)
    return files


def on_page_markdown(markdown, page, config, files):
    """Links by the paths that their targets have on the site."""
    here = PurePosixPath(page.file.src_uri).parent

    def moved(link):
        target = resolved(page.file.src_uri, link[1])
        path = target.removeprefix("docs/")
        if (ROOT / target).is_dir():
            path += "/files.md"
        elif path.endswith(".ipynb"):
            path = path.removesuffix("ipynb") + "md"
        return os.path.relpath(path, here)

    return outside_code(markdown, lambda text: LINK.sub(moved, text))


def outside_code(markdown, change):
    """The text with its parts outside fenced code changed."""
    return "".join(part if part.startswith("```") else change(part) for part in FENCE.split(markdown))


def targets(src_uri, markdown):
    """Paths below the repository's root of what a page links to."""
    found = set()
    outside_code(markdown, lambda text: found.update(resolved(src_uri, link) for link in LINK.findall(text)) or text)
    return found


def resolved(src_uri, link):
    """A page's link as a path below the repository's root."""
    source = f"docs/{src_uri}" if (ROOT / "docs" / src_uri).exists() else src_uri
    return os.path.normpath(PurePosixPath(source).parent / link)


def published(target):
    """Whether a path is a page, or lies in docs/, which MkDocs reads."""
    return target in OUTSIDE or target.startswith("docs/")


def add(files, config, target):
    """Copies a file or folder of the repository; MkDocs reports the links to what is missing."""
    path = ROOT / target
    if path.is_dir():
        inside = sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())
        listing = "\n".join(f"- [{name}]({name})" for name in inside)
        name = f"{target}/files.md"
        if name not in files.src_uris:
            content = f"# Files of {target}\n\n{listing}\n"
            files.append(File.generated(config, name, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
        for each in inside:
            add(files, config, f"{target}/{each}")
    elif path.is_file() and target not in files.src_uris:
        copy = File.generated(config, target, abs_src_path=str(path), inclusion=InclusionLevel.INCLUDED)
        files.append(copy)


def page_of(notebook):
    """A notebook as Markdown: its cells, and what they printed."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += ["```text\n" + "".join(output["text"]).rstrip() + "\n```" for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"
