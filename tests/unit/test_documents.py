"""What the documents name exists: files, tests, classes, links, hashes; so that they cannot rot."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(
        ROOT / name
        for name in ("README.md", "README.ko.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TABLES = [
    ROOT / name for name in ("SECURITY.md", "docs/specification.md", "docs/footguns.md", "docs/for-admins.md")
]
_CODE = re.compile(r"`([^`\n]+)`")
_NAMED = re.compile(
    r"(?P<path>(?:mqi_hpc|tests|docs|config|job_templates|docker|dev\.d|benchmarks)/[\w./*-]*|pyproject\.toml"
    r"|requirements\.lock|(?:README(?:\.ko)?|CONTRIBUTING|CHANGELOG|SECURITY)\.md)(?:::(?P<name>[\w.]+))?\Z"
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def named(document: Path) -> list[tuple[str, str]]:
    """The paths that a document names in code marks, each with the name in it, '' for none."""
    found = [_NAMED.match(text) for text in _CODE.findall(document.read_text(encoding="utf-8"))]
    return [(match["path"], match["name"] or "") for match in found if match]


@functools.cache
def defined(path: Path) -> frozenset[str]:
    """The names a Python file defines: classes, functions, constants, and Class.member."""
    names: set[str] = set()

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.ClassDef():
                    names.add(prefix + node.name)
                    walk(node.body, f"{prefix}{node.name}.")
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    names.add(prefix + node.name)
                case ast.Assign():
                    names.update(
                        prefix + target.id for target in node.targets if isinstance(target, ast.Name)
                    )
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names.add(prefix + name)

    walk(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(names)


def missing(document: Path) -> list[str]:
    """What a document names that is not there."""
    faults = []
    for path, name in named(document):
        there = any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()
        if not there:
            faults.append(f"{path} does not exist")
        elif name and name not in defined(ROOT / path):
            faults.append(f"{path} defines no {name}")
    return faults


@pytest.mark.parametrize("document", TABLES, ids=relative)
def test_what_a_document_names_exists(document: Path) -> None:
    assert named(document)
    assert missing(document) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    inward = [link.partition("#")[0] for link in _LINK.findall(text) if "://" not in link]
    assert [link for link in inward if not (document.parent / link).exists()] == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("`mqi_hpc/core/no_such.py`", "mqi_hpc/core/no_such.py does not exist"),
        ("`mqi_hpc/core/models.py::NoCase`", "mqi_hpc/core/models.py defines no NoCase"),
        ("`mqi_hpc/core/models.py::CaseStatus.OLD`", "mqi_hpc/core/models.py defines no CaseStatus.OLD"),
        ("`tests/unit/no_such*.py`", "tests/unit/no_such*.py does not exist"),
        ("`mqi_hpc/core/models.py::CaseStatus.NEW`", None),
        ("`mqi_hpc/core/models.py::Case.log_context` and `mqi_hpc/core/`", None),
        ("`squeue` and `ssh.host` and `https://x/tests/y.py`", None),
    ],
)
def test_what_is_not_there_is_found(tmp_path: Path, text: str, fault: str | None) -> None:
    document = tmp_path / "x.md"
    document.write_text(text)
    assert missing(document) == ([fault] if fault else [])


def test_every_locked_package_has_a_hash() -> None:
    """Without one, pip's --require-hashes would refuse the whole file on somebody else's machine."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    packages = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert packages
    assert [line for line in packages if "==" not in line or "--hash=sha256:" not in line] == []


def test_no_module_listens() -> None:
    """SECURITY.md says that no port is open."""
    serving = re.compile(r"\.listen\(|socketserver|http\.server|create_server|start_server")
    sources = sorted((ROOT / "mqi_hpc").rglob("*.py"))
    assert [relative(path) for path in sources if serving.search(path.read_text(encoding="utf-8"))] == []


def test_the_specification_names_every_setting_with_its_test() -> None:
    from tests.unit.test_settings import TESTED

    text = (ROOT / "docs/specification.md").read_text(encoding="utf-8").partition("\n## Settings\n")[2]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    said = {setting: _CODE.findall(row[2]) for row in rows for setting in _CODE.findall(row[0])}
    assert sorted(said) == sorted(TESTED)
    here = "tests/unit/test_settings.py::"
    named_for = {
        setting: {test.removeprefix(here) for test in tests if test.startswith(here)}
        for setting, tests in said.items()
    }
    assert [setting for setting, test in TESTED.items() if test not in named_for[setting]] == []


def protocols() -> dict[str, list[str]]:
    """The interfaces of core/interfaces.py, each with its methods and properties."""
    tree = ast.parse((ROOT / "mqi_hpc/core/interfaces.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("I")]
    return {c.name: [node.name for node in c.body if isinstance(node, ast.FunctionDef)] for c in classes}


def test_the_specification_names_every_interface_with_its_methods() -> None:
    rows = [
        line.split(" | ")
        for line in (ROOT / "docs/specification.md").read_text(encoding="utf-8").splitlines()
    ]
    said = {row[0].strip("|` "): row[1].split(", ") for row in rows if row[0].startswith("| `I")}
    assert said == protocols()


def test_the_specification_names_every_value() -> None:
    from mqi_hpc.core.models import CaseStatus, JobStatus, SubmitState, TaskStatus, TaskType

    text = (ROOT / "docs/specification.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    for kind in (CaseStatus, JobStatus, TaskType, TaskStatus, SubmitState):
        assert [value for value in kind if f"`{value}`" not in rows[kind.__name__]] == []


MANUALS = [
    ROOT / name for name in ("README.md", "README.ko.md", "docs/for-admins.md", "docs/for-physicists.md")
]
_CALL = re.compile(r"(?:^|`)mqi-hpc (?!--)(?P<words>[^`#|\n]+)", re.MULTILINE)


def calls(document: Path) -> list[tuple[str, tuple[str, ...]]]:
    """The commands of ours that a document names, each with its options."""
    found = [match["words"].split() for match in _CALL.finditer(document.read_text(encoding="utf-8"))]
    return [(words[0], tuple(word for word in words if word.startswith("--"))) for words in found]


@pytest.mark.parametrize("document", MANUALS, ids=relative)
def test_commands_exist_with_their_options(document: Path) -> None:
    from typer.core import TyperGroup
    from typer.main import get_command

    from mqi_hpc.cli import app

    group = get_command(app)
    assert isinstance(group, TyperGroup)
    options = {name: {opt for p in one.params for opt in p.opts} for name, one in group.commands.items()}
    named = calls(document)
    assert named
    assert [name for name, _ in named if name not in options] == []
    assert [call for call in named if not set(call[1]) <= options[call[0]]] == []


def test_the_korean_readme_has_the_same_commands_and_links() -> None:
    english, korean = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md"))
    assert calls(ROOT / "README.ko.md") == calls(ROOT / "README.md")
    said, repeated = (set(_LINK.findall(text)) - {"README.md", "README.ko.md"} for text in (english, korean))
    assert repeated == said


@pytest.mark.parametrize("document", MANUALS, ids=relative)
def test_settings_exist(document: Path) -> None:
    from mqi_hpc.infrastructure.config.models import AppConfig

    sections = {name: field.annotation for name, field in AppConfig.model_fields.items()}
    pattern = re.compile(rf"(?!stages\.pyz)(?P<section>{'|'.join(sections)})\.(?P<key>[a-z_0-9]+)")
    named = [m for text in _CODE.findall(document.read_text(encoding="utf-8")) if (m := pattern.match(text))]
    assert named
    unknown = [m[0] for m in named if m["key"] not in getattr(sections[m["section"]], "model_fields", {})]
    assert unknown == []


def test_metrics_of_the_admins_page_exist() -> None:
    page = (ROOT / "docs/for-admins.md").read_text(encoding="utf-8")
    source = (ROOT / "mqi_hpc/core/metrics.py").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmqi_hpc_(\w+)", page))
    assert named
    assert [name for name in named if f'"{name.removesuffix("_total")}"' not in source] == []


def test_the_physicists_page_says_every_word() -> None:
    from mqi_hpc.core.attention import WAYS
    from mqi_hpc.core.models import CaseStatus, TaskStatus
    from mqi_hpc.core.slurm_states import LIVE

    page = (ROOT / "docs/for-physicists.md").read_text(encoding="utf-8").replace("\n", " ")
    words = {*CaseStatus, *TaskStatus, *LIVE.values(), *WAYS, "settling", "deferred", "paused"}
    assert [word for word in words if not re.search(rf"\b{word}\b", page)] == []


def test_the_tour_names_files_that_exist() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Working")[0]
    named = [text for text in _CODE.findall(tour) if re.fullmatch(r"[a-z_]+/[\w./]*", text)]
    assert len(named) > 20
    assert [
        name for name in named if not ((ROOT / "mqi_hpc" / name).exists() or (ROOT / name).exists())
    ] == []
