"""The shape of the code: layers, doors, sizes, docstrings (DESIGN.md, "Layout")."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "privft"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)

# Lower may not import higher.  The first prefix that matches wins, so exceptions come first.
LAYERS: list[tuple[str, int]] = [
    ("privft.errors", 0),
    ("privft.config", 1),
    ("privft.policy", 1),
    ("privft.signing", 1),
    ("privft.randomness", 1),
    ("privft.synthetic", 1),
    ("privft.strictyaml", 1),
    ("privft.keyring", 1),
    ("privft.plan", 1),
    ("privft.sweep", 1),
    ("privft.wire", 1),
    ("privft.evaluating", 1),
    ("privft.modelshape", 1),
    ("privft.sizing", 1),
    ("privft.budget.mechanism", 1),
    ("privft.budget.accounting", 1),
    ("privft.budget.reference", 1),
    ("privft.budget.filter", 1),
    ("privft.budget.translog", 1),
    ("privft.budget.entries", 1),
    ("privft.budget.history", 1),
    ("privft.budget.judged", 1),
    ("privft.budget.signed", 1),
    ("privft.budget.selection", 1),
    ("privft.budget.priced", 1),
    ("privft.budget.charged", 1),
    ("privft.budget.renyi", 1),
    ("privft.budget.calibration", 1),
    ("privft.budget.tradeoff", 1),
    ("privft.audit.bounds", 1),
    ("privft.audit.rates", 1),
    ("privft.vault.floe", 1),
    ("privft.vault", 2),
    ("privft.budget", 2),
    ("privft.workspace", 2),
    ("privft.hardening", 2),
    ("privft.training", 3),
    ("privft.audit", 4),
    ("privft.report", 5),
    ("privft.gate", 6),
    ("privft.stages", 6),
    ("privft.doctor", 6),
    ("privft.cli", 7),
    ("privft.demo", 7),
    ("privft", 0),
]

# library -> the only places that may import it
DOORS: dict[str, tuple[str, ...]] = {
    "opacus": ("privft.training.opacus_engine",),
    "peft": ("privft.training.adapter",),
    "dp_accounting": ("privft.budget.accounting",),
    "riskcal": ("privft.budget.accounting",),
    "cryptography": ("privft.vault", "privft.signing", "privft.randomness"),
    "securesystemslib": ("privft.signing",),
    "click": ("privft.cli",),
    "sqlite3": ("privft.budget.ledger", "privft.budget.store"),
    "psycopg": ("privft.budget.postgres",),
    "typst": ("privft.report.pdf",),
    "pkcs11": ("privft.vault.tokens",),
    "jinja2": ("privft.report",),
    "datasets": ("privft.vault.intake",),
}

TORCH_FREE = ["--help", "ledger --help", "verify --help", "policy --help", "epsilon --help"]
HEAVY = {"torch", "transformers", "peft", "opacus", "datasets"}


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    for prefix, layer in LAYERS:
        if module == prefix or module.startswith(prefix + "."):
            return layer
    raise AssertionError(module)


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def imports_of(path: Path) -> set[str]:
    """Every module that the file imports anywhere, also inside functions, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer they reach into"
            assert node.module is not None
            found.add(node.module)
            if node.module.split(".")[0] == "privft":
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    module = name_of(path)
    for imported in imports_of(path):
        if imported.split(".")[0] != "privft" or not is_module(imported):
            continue
        is_package = (ROOT.joinpath(*imported.split(".")) / "__init__.py").exists()
        if is_package and imported != "privft.cli":
            continue  # packages hold only their doc; what is taken from them is checked by name
        assert layer_of(imported) <= layer_of(module), f"{module} reaches up into {imported}"
        if within(module, "privft.training"):
            assert not within(imported, "privft.audit"), f"{module} must not know {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_library_has_one_door(path: Path) -> None:
    module = name_of(path)
    for imported in imports_of(path):
        doors = DOORS.get(imported.split(".")[0])
        if doors is not None:
            assert any(within(module, door) for door in doors), f"{module} imports {imported}"


def test_there_are_no_import_cycles() -> None:
    graph = {
        name_of(path): {
            imported
            for imported in imports_of(path)
            if imported.startswith("privft.") and is_module(imported)
        }
        for path in MODULES
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for imported in graph.get(module, set()):
            # `from package import module` names the package too; its __init__ is what runs
            if imported != module:
                visit(imported, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is_for_and_stays_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(text))
    assert doc, f"{path} has no docstring"
    assert len(doc) >= 60, f"{path}: {doc!r} does not say what the room is for"
    assert text.count("\n") <= 410, f"{path} has {text.count(chr(10))} lines"


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {line.split(".")[0] for line in done.stdout.splitlines()}


def test_package_inits_load_without_torch() -> None:
    names = [name_of(path) for path in MODULES if path.name == "__init__.py"]
    assert not loaded_by("\n".join(f"import {name}" for name in names)) & HEAVY


@pytest.mark.parametrize("arguments", TORCH_FREE)
def test_light_commands_load_without_torch(arguments: str) -> None:
    code = (
        "from click.testing import CliRunner\nfrom privft.cli import main\n"
        f"result = CliRunner().invoke(main, {arguments.split()!r})\n"
        "assert result.exit_code == 0, result.output"
    )
    assert not loaded_by(code) & HEAVY


def test_dangerous_spellings_are_absent() -> None:
    banned = ("weights_only=False", "trust_remote_code=True", "pickle.load", "verify=False")
    for path in MODULES:
        text = path.read_text(encoding="utf-8").replace(" ", "")
        for spelling in banned:
            assert spelling.replace(" ", "") not in text, f"{path}: {spelling}"
