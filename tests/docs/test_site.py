"""The documentation's site is built without a warning, and a browser shows it.

`make docs` runs this in an environment without PyTorch, where the site that SITE names is taken.
"""

import ast
import functools
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import BROWSER, rendered
from tests.processes import ROOT

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings_handlers.python")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if "SITE" in os.environ:
        return ROOT / os.environ["SITE"]
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def exported(path):
    """``__all__`` of a file that is not imported."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value)) - {"__version__"}
    raise AssertionError(f"{path} has no __all__")


@pytest.mark.parametrize(
    ("package", "source"),
    [("weight_evolution", "python/weight_evolution/api.py"), ("we_kernels", "we_kernels/__init__.py")],
)
def test_every_public_name_has_an_entry(site, package, source):
    text = (site / "api" / f"{package}.html").read_text(encoding="utf-8")
    assert set(re.findall(rf'<h3 id="{package}\.(?:\w+\.)*(\w+)"', text)) == exported(source)
    assert "doc-module" not in text  # as of a function that is named like its module


def test_nothing_is_fetched_when_a_page_is_viewed(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe)[^>]* src="?([^" >]+)|<link[^>]* href="?([^" >]+)', text)
        assert fetched
        assert [link for pair in fetched for link in pair if re.match(r"(?:https?:)?//", link)] == []


def test_files_outside_docs_are_there(site):
    text = (site / "integrations.html").read_text(encoding="utf-8")
    examples = re.findall(r'href="(examples/\w+\.py)"', text)
    assert {Path(each).name for each in examples} == {path.name for path in (ROOT / "examples").glob("*.py")}
    assert all((site / each).read_bytes() == (ROOT / each).read_bytes() for each in examples)
    assert (site / "benchmarks" / "results" / "files.html").is_file()


# What the browser made of the page, by a script of the test's own: title, first heading, links of the navigation that
# are seen, and the text of an element.
PROBE = """<script>addEventListener('load', () => {
const seen = [...document.querySelectorAll('.md-sidebar--primary a.md-nav__link')].filter((a) => a.offsetHeight > 0);
const element = document.getElementById(ID);
document.body.innerHTML = '<pre id="seen">' + JSON.stringify([
    document.title, document.querySelector('h1').firstChild.textContent, seen.map((a) => a.innerText.trim()),
    element ? element.parentElement.innerText : '']).replaceAll('<', '&lt;') + '</pre>' })</script></body>"""


@pytest.fixture
def look(site, tmp_path):
    """path, id of an element -> what `PROBE` saw."""
    if BROWSER is None:
        pytest.skip("needs Chromium")
    return functools.partial(opened, site, tmp_path)


def opened(site, tmp_path, path, element):
    copy = tmp_path / "site"
    shutil.copytree(site, copy, dirs_exist_ok=True)
    page = copy / path
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", PROBE.replace("ID", repr(element))), encoding="utf-8")
    seen = rendered(page, tmp_path / "profile", "1400,900")
    return json.loads(html.unescape(re.search('<pre id="seen">(.*?)</pre>', seen, re.DOTALL)[1]))


def test_start_page_in_a_browser(look):
    title, heading, links, _ = look("start.html", "")
    assert title == "Five-minute start - weight-evolution"
    assert heading == "Five-minute start"
    assert {"Five-minute start", "Install", "Filter health", "Unit reactivation", "Integrations", "GPU"} <= set(links)


def test_reference_in_a_browser(look):
    title, _, links, text = look("api/weight_evolution.html", "weight_evolution.WeightEvolution")
    assert title == "weight_evolution - weight-evolution"
    assert "we_kernels" in links
    assert "WeightEvolution(" in text
    assert "crossover: str = " in text
    assert "the network; its parameters may later move between devices or be reloaded" in text
