"""The tree itself: sizes, names, docstrings, who reads the clock. Each limit is a rule of STYLE.md that a reviewer need not look after."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "online_store", "streams", "replay", "ranker", "compose")
#: Longer than this, a function does two things.
FUNCTION_LINES_MAX = 60
#: Longer than this, a module has two nouns.
MODULE_LINES_MAX = 300
#: More than this, a newcomer does not keep a package in mind; __init__.py does not count.
PACKAGE_MODULES_MAX = 9
#: What stands at the top of the tree for whoever comes first.
TOP_FILES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "STYLE.md", "CHANGELOG.md", "LICENSE", "Makefile", "pyproject.toml")
ARCHITECTURE_LINES_MAX = 200
#: Module names that say nothing of what is in them.
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base"}
#: Where nobody may read the clock: as_of_ms is an argument from the edge inwards.
CLOCKLESS = ("schemas/", "online_store/", "replay/rows.py")
CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}
LATER = re.compile("TO" + "DO|FIX" + "ME|X" + "XX")
SUPPRESSION = re.compile(r"#\s*(noqa|type:\s*ignore)(?P<rest>.*)")
#: Codes, then a reason in words behind "#" or "-"; of two on one line, the last reason is both's.
REASONED = re.compile(r"(:\s*[A-Z]+[0-9]+(,\s*[A-Z]+[0-9]+)*|\[[a-z-]+(,\s*[a-z-]+)*\])(\s+#\s*noqa:\s*[A-Z]+[0-9]+)?\s+[#-]\s*\w+")
#: Registries' hosts, and folders of somebody's own machine: spelled in parts, so that this file may be looked at too.
HOSTS = re.compile(r"(pypi|pythonhosted|registry\.npmjs|artifactory|repo1?\.maven)" + r"\.(org|com|io|apache)")
MACHINE_PATHS = re.compile(r"(?<![\w.}/-])/(" + "work|root|home/[a-z]+|Users" + r")/")
GENERATED = ("requirements.lock", "tests/data/", "tests/golden/data/")


def tracked() -> list[Path]:
    """Files that git knows, or would know: not those that it ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")  # noqa: S603  # a fixed command
    return [Path(name) for name in sorted(filter(None, names)) if (ROOT / name).is_file()]


FILES = tracked()
MODULES = [path for path in FILES if path.suffix == ".py"]
PRODUCT = [path for path in MODULES if path.parts[0] in PACKAGES]


def text_of(path: Path) -> str:
    return (ROOT / path).read_text()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


def lines(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Every line of text files, with where it stands."""
    for path in paths:
        try:
            text = text_of(path)
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path}:{number}", line


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_no_function_is_longer_than_sixty_lines() -> None:
    """In tests neither."""
    spans = {f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1 for path in MODULES for node in functions(path)}

    assert {name: span for name, span in spans.items() if span > FUNCTION_LINES_MAX} == {}


def test_no_module_of_the_product_is_longer_than_three_hundred_lines() -> None:
    """Split it by its nouns."""
    sizes = {str(path): len(text_of(path).splitlines()) for path in PRODUCT}

    assert {name: size for name, size in sizes.items() if size > MODULE_LINES_MAX} == {}


def test_no_package_has_more_than_nine_modules() -> None:
    """A folder inside a package counts as its own."""
    modules: dict[str, list[str]] = {}
    for path in PRODUCT:
        if path.name != "__init__.py":
            modules.setdefault(str(path.parent), []).append(path.name)

    assert {package: names for package, names in modules.items() if len(names) > PACKAGE_MODULES_MAX} == {}


def test_every_package_is_listed_and_typed() -> None:
    """pyproject.toml names each, and each says that its types may be relied on."""
    lines_of = text_of(Path("pyproject.toml")).split("packages = [", 1)[1].split("]", 1)[0]
    listed = re.findall(r'^    "([a-z0-9_.]+)",$', lines_of, re.MULTILINE)
    found = {".".join(path.parent.parts) for path in PRODUCT if path.name == "__init__.py"}

    assert (set(listed), [name for name in PACKAGES if Path(name) / "py.typed" not in FILES]) == (found, [])


@pytest.mark.parametrize("path", [path for path in MODULES if text_of(path).strip() and path.name != "__init__.py"], ids=str)
def test_a_module_opens_with_what_it_is_for(path: Path) -> None:
    """One docstring, which ends like a sentence."""
    said = (ast.get_docstring(tree_of(path)) or "").split("\n\n")[0]

    assert re.search(r"[.:`)]$", said), said


def test_every_test_states_its_claim() -> None:
    """In a docstring."""
    tests = [(path, node) for path in MODULES if path.name.startswith("test_") for node in functions(path)]

    assert [f"{path}:{node.name}" for path, node in tests if node.name.startswith("test_") and not ast.get_docstring(node)] == []


def test_no_module_has_a_name_without_a_meaning() -> None:
    """Name it after its noun."""
    assert [str(path) for path in MODULES if path.stem in NAMELESS] == []


def test_nothing_is_left_for_later() -> None:
    """An issue is the place for it."""
    assert [where for where, line in lines(MODULES) if LATER.search(line)] == []


def test_no_handler_catches_everything() -> None:
    """Whoever catches knows what; to undo and raise again is no catching."""
    caught = {
        f"{path}:{node.lineno}": name
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and not any(isinstance(part, ast.Raise) and part.exc is None for part in node.body)
        for name in _names(node.type)
    }

    assert {where: name for where, name in caught.items() if name in {"", "Exception", "BaseException"}} == {}


def _names(kind: ast.expr | None) -> list[str]:
    if kind is None:
        return [""]
    if isinstance(kind, ast.Tuple):
        return [name for part in kind.elts for name in _names(part)]
    return [ast.unparse(kind).rsplit(".", maxsplit=1)[-1]]


def test_nobody_reads_the_clock() -> None:
    """Live ingest, replay, serving and training would differ by it."""
    read = [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path in PRODUCT
        if str(path).startswith(CLOCKLESS)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and (ast.unparse(node.value).rsplit(".", 1)[-1], node.attr) in CLOCKS
    ]
    imported = [
        f"{path}:{node.lineno}: {alias.name}"
        for path in PRODUCT
        if str(path).startswith(CLOCKLESS)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
    ]

    assert read + imported == []


def test_every_suppressed_warning_has_its_code_and_its_reason() -> None:
    """`# noqa: CODE  # why`, `# type: ignore[code]  # why`."""
    found = [(where, SUPPRESSION.search(line)) for where, line in lines(MODULES) if "SUPPRESSION" not in line and '"""' not in line]

    assert [where for where, match in found if match and not REASONED.match(match["rest"])] == []


def test_every_lint_ignore_has_its_reason() -> None:
    """Beside it in pyproject.toml."""
    block = text_of(Path("pyproject.toml")).split("[tool.ruff.lint]", 1)[1].split("[tool.ruff.lint.pylint]", 1)[0]
    ignores = [line for line in block.splitlines() if re.match(r'\s+"[A-Z]+[0-9]*",', line)]

    assert ([line for line in ignores if not re.search(r",\s*#\s*\S", line)], len(ignores) > 0) == ([], True)


def test_a_lua_file_opens_with_its_keys_and_arguments() -> None:
    """Before the first line of code."""
    heads = {str(path): text_of(path).split("\n\n", 1)[0] for path in FILES if path.suffix == ".lua"}

    wrong = [name for name, head in heads.items() if "KEYS[1]" not in head or "ARGV[1]" not in head or "Returns" not in head]
    assert (wrong, len(heads) > 0) == ([], True)


def test_no_file_names_a_registry_host() -> None:
    """Where packages come from is the reader's setting."""
    assert [where for where, line in lines([path for path in FILES if not str(path).startswith(GENERATED)]) if HOSTS.search(line)] == []


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    """A path is relative, or comes from a setting."""
    wrong = [where for where, line in lines([path for path in FILES if not str(path).startswith(GENERATED)]) if MACHINE_PATHS.search(line)]

    assert wrong == []


@pytest.mark.parametrize("name", TOP_FILES)
def test_the_files_a_newcomer_opens_are_there(name: str) -> None:
    """And say something."""
    assert text_of(Path(name)).strip()


def test_the_architecture_is_short() -> None:
    """Ten minutes, not an hour."""
    assert len(text_of(Path("ARCHITECTURE.md")).splitlines()) < ARCHITECTURE_LINES_MAX


def test_every_schema_file_names_its_record_and_version() -> None:
    """<record>.v<N>.avsc, from 1 without a gap."""
    names = [path.name for path in FILES if path.suffix == ".avsc"]
    parsed = [re.fullmatch(r"([a-z_]+)\.v([1-9][0-9]*)\.avsc", name) for name in names]
    versions: dict[str, list[int]] = {}
    for match in filter(None, parsed):
        versions.setdefault(match[1], []).append(int(match[2]))

    assert (
        len(names) > 0,
        all(parsed),
        [record for record, found in versions.items() if sorted(found) != [*range(1, len(found) + 1)]],
    ) == (
        True,
        True,
        [],
    )
