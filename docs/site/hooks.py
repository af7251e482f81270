"""What mkdocs is told beside mkdocs.yml: the navigation, files outside of docs/, and no foreign scripts.

The pages are written for a forge first, where `../jobs/estonia.yaml` is a link like any other. In the site such a file
becomes a page of its own, with the file as it is; a folder becomes a list of its files.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
FOREIGN = re.compile(
    r'<script[^>]*\ssrc="(?:https?:)?//[^>]*>\s*</script>'
    r'|<script type="module">(?:(?!</script>).)*?["\']https?://(?:(?!</script>).)*</script>',
    re.IGNORECASE | re.DOTALL,
)
NAME = re.compile(r"^- `([\w.]+)`: .*$", re.MULTILINE)
"""An item of api.md: a name in the place of which its documentation comes."""
OUTSIDE = "repository/"


def on_config(config: Any) -> Any:
    """The navigation is the map of docs/README.md: a section for each heading, a page for each item of its list."""
    nav: list[Any] = [{"Home": "README.md"}]
    page = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        items = re.findall(r"^- \[([^\]]+)\]\(([^)#\s]+)", body, re.MULTILINE)
        nav.append({heading.strip(): [{title: _within_site(target)} for title, target in items]})
    config.nav = nav
    return config


def on_files(files: Files, config: Any) -> Files:
    """A page for each file outside of docs/ that a page leads to, and for those that these lead to."""
    todo = {
        path for file in files.documentation_pages() for path in _outside(file.content_string, "docs/" + file.src_uri)
    }
    done: set[str] = set()
    while todo - done:
        path = sorted(todo - done)[0]
        done.add(path)
        text = _shown(path)
        files.append(File.generated(config, _within_site("../" + path), content=text))
        if path.endswith(".md"):
            todo |= _outside(text, path)
        if (ROOT / path).is_dir():
            todo |= {f"{path}/{child.name}" for child in _children(path)}
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ lead to the pages that `on_files` made."""
    here = page.file.src_uri
    if here == "api.md":
        markdown = NAME.sub(
            lambda m: f"::: {m[1].replace('gf.', 'geoflow.', 1) if m[1].startswith('gf.') else m[1]}\n", markdown
        )
    source = here.removeprefix(OUTSIDE) if here.startswith(OUTSIDE) else "docs/" + here

    def lead(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if not (ROOT / target).exists():
            return match[1]
        inside = target.removeprefix("docs/") if target.startswith("docs/") else _within_site("../" + target)
        return posixpath.relpath(inside, posixpath.dirname(here) or ".")

    parts = re.split(f"({FENCED.pattern})", markdown, flags=FENCED.flags)
    return "".join(part if part.startswith("```") else LINK.sub(lead, part) for part in parts)


def on_post_page(output: str, **_: Any) -> str:
    """Nothing is loaded from other machines: the templates of notebooks name MathJax and Mermaid on some."""
    return FOREIGN.sub("", output)


def _within_site(target: str) -> str:
    """Where a link of docs/README.md leads within the site."""
    if not target.startswith("../"):
        return target
    path = target.removeprefix("../").rstrip("/")
    return OUTSIDE + (path if path.endswith(".md") else path + ".md")


def _outside(text: str, source: str) -> set[str]:
    """Files and folders of the repository, not of docs/, that a page leads to."""
    found = set()
    for target in LINK.findall(FENCED.sub("", text)):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not path.startswith(("..", "docs/")) and path != "docs" and (ROOT / path).exists():
            found.add(path)
    return found


def _children(path: str) -> list[Path]:
    return sorted(child for child in (ROOT / path).iterdir() if child.suffix in {".yaml", ".py", ".md"})


def _shown(path: str) -> str:
    """A file as a page."""
    here = ROOT / path
    if here.is_dir():
        items = "\n".join(f"- [{child.name}]({here.name}/{child.name})" for child in _children(path))
        return f"# {path}\n\n{items}\n"
    text = here.read_text(encoding="utf-8")
    if here.suffix == ".md":
        return text
    language = {".yaml": "yaml", ".py": "python", ".toml": "toml"}.get(here.suffix, "text")
    found_last = "---\nsearch:\n  boost: 0.3\n---\n"  # a guide that names a key comes before the files that have it
    return f"{found_last}# {path}\n\n````{language}\n{text}````\n"
