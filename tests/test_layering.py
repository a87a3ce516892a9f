"""The arrows of the design, read off the imports: cli -> classify -> extract -> cache -> errors, and nothing back."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import headstart

ROOT = Path(headstart.__file__).parent
FOLDERS = (
    ".",
    "cache",
    "extract",
    "extract/engines",
    "classify",
    *(f"classify/{name}" for name in ("export", "finetune", "pages", "serve")),
)
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))
ALLOWED = {
    "errors": set(),
    "cache": {"cache", "errors", ""},
    "extract": {"extract", "cache", "errors", ""},
    "classify": {"classify", "extract", "cache", "errors", ""},
    "finetune": {"finetune", "classify", "extract", "cache", "errors", ""},
    "export": {"export", "classify", "extract", "cache", "errors", ""},
    "pages": {"pages", "finetune", "classify", "extract", "cache", "errors", ""},
    "serve": {"serve", "classify", "extract", "cache", "errors", ""},
    "demo": {"classify", "extract", "errors"},
    "console": {"errors"},
    "cli_options": {"console"},
    "cli_cache": {"cli_options", "console", "extract", "cache", "errors"},
    "cli_finetune": {"cli_options", "console", "finetune", "extract"},
    "cli_compare": {"cli_options", "console", "pages", "classify", "extract", "errors"},
    "cli_export": {"cli_options", "console", "export", "classify", "extract", "errors"},
    "cli_report": {"cli_options", "console", "pages", "classify", "extract", "errors"},
    "cli_serve": {"cli_options", "console", "serve", "classify", "extract", "errors"},
    "cli": {
        "cli_cache",
        "cli_compare",
        "cli_export",
        "cli_finetune",
        "cli_report",
        "cli_serve",
        "cli_options",
        "console",
        "demo",
        "finetune",
        "classify",
        "extract",
        "cache",
        "errors",
        "",
    },
    "__init__": {"export", "finetune", "pages", "serve", "classify", "extract", "errors"},
}
HEAVY = {
    *("torch", "torchvision", "timm", "sklearn", "scipy", "h5py", "PIL"),
    *("jinja2", "matplotlib", "umap", "onnx", "onnxruntime", "starlette", "uvicorn"),
    *("dask", "distributed", "ray", "fsspec", "s3fs", "gcsfs", "upath", "aiohttp"),
}
MAY_IMPORT_PIL = {"decode.py"}
MAY_IMPORT_TORCH = {"modules.py"}  # networks of our own, which nothing loads that could do without torch
# Classes of scikit-learn's, which only `headstart.LogisticRegressionPath` and `headstart.FrozenBackbone` load.
MAY_IMPORT_SKLEARN = {"estimator.py", "transformer.py"}


def room(path: Path) -> str:
    if path.parent == ROOT:
        return path.stem
    return path.parent.name if path.parent.name in ALLOWED else path.parent.parent.name  # engines are part of extract


def room_of(folders: list[str]) -> str:
    """Return the room of a module by the folders above it and its name: `classify/export/` is one of its own."""
    inner = folders[1:2] if folders[0] == "classify" and f"classify/{''.join(folders[1:2])}" in FOLDERS else []
    return (inner or folders)[0]


def imports(path: Path):
    """Yield (node, absolute module or "", own room or None) of every import in a file."""
    above = path.relative_to(ROOT).parts[:-1]  # the folders that a file is in
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, node.module or "", None
        elif isinstance(node, ast.ImportFrom):
            named = (node.module or "").split(".")
            folders = [*above[: len(above) + 1 - node.level], *named]
            names = [room_of(folders)] if node.module else [a.name if a.name in ALLOWED else "" for a in node.names]
            yield from ((node, "", name) for name in names)


def test_there_is_something_to_look_at():
    assert len(MODULES) > 25


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    for node, _, own in imports(path):
        if own is not None:
            assert own in ALLOWED[room(path)], f"line {node.lineno} imports {own or 'the package'}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_of_our_own_are_relative(path):
    # cli.py hands over to the installed package when it is run as a script, before any relative import can work.
    allowed = {"headstart.cli"} if path.name == "cli.py" else set()
    for node, module, _ in imports(path):
        assert module.split(".")[0] != "headstart" or module in allowed, f"line {node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_slow_is_imported_at_the_top(path):
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        found = {name.split(".")[0] for name in names} & HEAVY
        if path.name in MAY_IMPORT_PIL:
            found -= {"PIL"}
        if path.name in MAY_IMPORT_TORCH and room(path) == "finetune":
            found -= {"torch"}
        if path.name in MAY_IMPORT_SKLEARN:
            found -= {"sklearn"}
        assert not found, f"line {node.lineno} imports {found}"


# Messages between the processes of one run are not at rest.
MAY_PICKLE = {"extract/orders.py": {"pickle"}}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "yaml"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_t11_nothing_at_rest_is_unpickled_or_run(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {
                (getattr(node, "module", "") or "").split(".")[0]
            }
            allowed = MAY_PICKLE.get(str(path.relative_to(ROOT)), set())
            assert not names & (FORBIDDEN_MODULES - allowed), f"line {node.lineno}"
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            assert text not in {"eval", "exec", "compile", "__import__", "joblib.load"}, f"line {node.lineno}"
            # numpy's reader unpickles when asked to; HDF5's references and ragged types are objects of Python.
            assert text not in {"np.load", "np.fromregex", "numpy.load"}, f"line {node.lineno}"
            assert not text.endswith((".vlen_dtype", ".special_dtype", ".ref_dtype")), f"line {node.lineno}"
            assert not text.endswith((".extractall", ".load_state_dict_from_url")), f"line {node.lineno}"
            assert not any(k.arg == "allow_pickle" for k in node.keywords), f"line {node.lineno}"


def test_t11_torch_load_has_one_caller_and_it_wants_weights_only():
    calls = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                calls.append((path.name, {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only")))
    assert calls == [("weights.py", "True")]


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh Python has loaded after `code`."""
    program = f"import sys\n{code}\nprint('\\n' + ' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


def test_importing_headstart_imports_nothing_slow():
    loaded = modules_after("import headstart")
    assert not loaded & {*HEAVY, "numpy", "click"}


def test_help_imports_nothing_slow():
    loaded = modules_after("from headstart.cli import main; main(['--help']); main(['extract', '--help'])")
    assert "click" in loaded
    assert not loaded & {*HEAVY, "numpy"}


def test_cache_info_never_imports_torch(tmp_path):
    loaded = modules_after(f"from headstart.cli import main; main(['cache', 'info', '--cache', {str(tmp_path)!r}])")
    assert not loaded & (HEAVY - {"h5py"})
