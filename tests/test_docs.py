"""The documents are true: snippets run, links resolve, commands and files exist, and the site has every public name."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from rlm import RLM
from rlm.testing import ChatRequest, finish, serve

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("environments/*/README.md")]
    if path.stat().st_size
)
DOCS = ROOT / "docs"
PUBLIC_MODULES = (
    "rlm",
    "rlm.options",
    "rlm.types",
    "rlm.errors",
    "rlm.events",
    "rlm.context",
    "rlm.clients",
    "rlm.environments",
    "rlm.logger",
    "rlm.replay",
    "rlm.testing",
    "rlm.testing.conformance",
    "rlm_train",
)
_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)#]+)[^)]*\)")


def _blocks(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return [match["text"] for match in _BLOCK.finditer(text) if match["language"] == language]


def _ids(document: Path) -> str:
    return str(document.relative_to(ROOT))


def _competent(request: ChatRequest) -> str:
    if request.is_subcall:
        return "seen"
    return finish(
        "sum('error' in line for line in lines)",
        "lines = context.splitlines() if isinstance(context, str) else context",
    )


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if _blocks(d, "python")], ids=_ids)
def test_python_snippets_run(document: Path) -> None:
    """One after the other, as a reader would type them."""
    names: dict[str, object] = {"__name__": "__main__"}
    output = io.StringIO()
    with serve(_competent, models=["Qwen/Qwen3-8B", "scripted"]) as server:
        for code in _blocks(document, "python"):
            code = code.replace("http://localhost:8000/v1", server.base_url)
            with contextlib.redirect_stdout(output):
                exec(compile(code, str(document), "exec"), names)
    if document.name == "README.md" and document.parent == ROOT:
        assert output.getvalue() == "1031\n"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_ids)
def test_links_lead_to_files(document: Path) -> None:
    for match in _LINK.finditer(document.read_text(encoding="utf-8")):
        target = match["target"]
        if "://" not in target:
            path = (document.parent / target).resolve()
            assert path.exists(), target
            if document.is_relative_to(DOCS):
                assert path.is_relative_to(DOCS), (
                    f"{target} is not in the site: name the file, without a link"
                )


@pytest.mark.parametrize("document", DOCUMENTS, ids=_ids)
def test_lines_of_prose_wrap_at_120(document: Path) -> None:
    fenced = False
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("|", "  |")):
            assert len(line) <= 120, f"{document.name}:{number}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_ids)
def test_make_targets_exist(document: Path) -> None:
    commands = "\n".join(_blocks(document, "sh"))
    targets = set(re.findall(r"^(?:\w+=\S+ )*make ([a-z0-9-]+)", commands, re.MULTILINE))
    for target in targets:
        done = subprocess.run(
            ["make", "--dry-run", "VENV=.missing", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_readme_names_both_commands() -> None:
    commands = [
        shlex.split(line, comments=True) for line in _blocks(ROOT / "README.md", "sh")[0].splitlines()
    ]
    assert commands == [["make", "quickstart"], ["make", "test"]]


def test_the_conformance_snippet_runs_in_a_project_without_settings(tmp_path: Path) -> None:
    text = (DOCS / "places.md").read_text(encoding="utf-8")
    [snippet] = re.findall(r"^    import pytest\n(?:(?:    .*)?\n)+", text, re.MULTILINE)
    (tmp_path / "my_package.py").write_text(
        "import sys\n"
        "from rlm.environments.program import ProgramEnvironment\n"
        "def Machine(host):\n"
        "    return ProgramEnvironment(command=[sys.executable, '{archive}'])\n"
    )
    (tmp_path / "test_place.py").write_text(textwrap.dedent(snippet))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "namespace_lasts or four_functions"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


# The site.


class _Page(HTMLParser):
    """The anchors and the links of a built page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name == "href" and value and tag == "a":
                self.links.append(value)
            elif name in ("src", "href") and value and tag in ("script", "link", "img"):
                self.loads.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, _Page]:
    """The pages of the site, built as `make docs` builds it, but into another folder."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    for name in ("rlm", "training", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    program = Path(sys.executable).parent / "zensical"
    done = subprocess.run(
        [program, "build", "--strict"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "griffe: " not in done.stdout + done.stderr  # a docstring that does not fit its function
    return {path: _Page(path) for path in (folder / "site").rglob("*.html")}


def test_links_and_anchors_of_the_site_resolve(site: dict[Path, _Page]) -> None:
    broken = []
    for path, page in site.items():
        if path.name == "404.html":
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if target not in site or (parts.fragment and unquote(parts.fragment) not in site[target].anchors):
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_the_site_loads_nothing_from_elsewhere(site: dict[Path, _Page]) -> None:
    loads = {load for page in site.values() for load in page.loads}
    assert [load for load in loads if urlsplit(load).netloc] == []


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    named = set(re.findall(r'"([\w/-]+\.md)"', text))
    assert named == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_the_reference_has_every_public_name(site: dict[Path, _Page]) -> None:
    """At the module that exports the name, or at the one that defines it."""
    anchors = set().union(*(page.anchors for path, page in site.items() if path.parent.name == "api"))
    modules = [importlib.import_module(name) for name in PUBLIC_MODULES]
    missing = []
    for module in modules:
        for name in _public(module.__name__):
            value = getattr(module, name)
            homes = {other.__name__ for other in modules if getattr(other, name, None) is value}
            homes.add(getattr(value, "__module__", module.__name__))
            if not {f"{home}.{name}" for home in homes} & anchors:
                missing.append(f"{module.__name__}.{name}")
    assert missing == []


def test_the_reference_shows_what_callers_pass_and_get(site: dict[Path, _Page]) -> None:
    """The signature of RLM is its options, and a return value is one entry however long its text is."""
    pages = {path: path.read_text(encoding="utf-8") for path in site if path.parent.name == "api"}
    [text] = [re.sub(r"<[^>]+>", "", text) for path, text in pages.items() if path.name == "rlm.html"]
    [signature] = re.findall(r"RLM\(\s+backend: .*?\n\)", text, re.DOTALL)
    assert re.findall(r"^ +(\w+): ", signature, re.MULTILINE) == list(inspect.signature(RLM).parameters)
    lists = [
        entries
        for page in pages.values()
        for entries in re.findall(r"(?:Returns|Yields):(?:</\w+>)+\s*<ul>(.*?)</ul>", page, re.DOTALL)
    ]
    assert lists
    assert [entries for entries in lists if entries.count("<li") != 1] == []


def _public(module_name: str) -> list[str]:
    module = importlib.import_module(module_name)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module_name
    ]


# The pages that name files.


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_files_that_a_page_names_exist(name: str) -> None:
    """A path begins at the root. A file or folder without one is beside, or in, something that the same line names."""
    paths = 0
    missing = []
    for line in (ROOT / name).read_text(encoding="utf-8").replace("\n   ", " ").splitlines():
        folders = [ROOT]
        for word in re.findall(r"`([\w.-]+/[\w./*-]*|\w+\.(?:toml|lock|py|md))`", line):
            found = [path for folder in folders for path in folder.glob(word)]
            if not found and word != "site/":
                missing.append(word)
            paths += len(found)
            folders += [path if path.is_dir() else path.parent for path in found]
    assert missing == []
    assert paths


def test_the_picture_names_files_that_exist() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    [picture] = re.findall(r"^```mermaid\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r"[a-z_]+(?:/[a-z_]+)*(?:\.py|/)", picture.replace("<br/>", " "))
    assert len(named) > 10
    assert [name for name in named if not any((ROOT / f / name).exists() for f in ("rlm", "training"))] == []


# What GitHub reads.


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    [job] = workflow["jobs"].values()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = re.findall(r":: (3\.\d+)", " ".join(project["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == versions
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == ".ci/run"
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)


def test_issue_templates_have_the_fields_that_github_needs() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    for path in folder.glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name == "config.yml":
            assert set(form) <= {"blank_issues_enabled", "contact_links"}
            continue
        assert {"name", "description", "body"} <= set(form), path.name
        for field in form["body"]:
            assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes"), path.name
            assert field["type"] == "markdown" or field["attributes"]["label"], path.name


def test_the_changelog_has_the_version_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["version"]
