"""What tests of the project's own files share: finding and reading them."""

import ast
import functools
import importlib
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
MODULES = sorted((ROOT / "packnet_tf").glob("*.py"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@functools.cache
def parse(path):
    """Returns the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def load(path):
    """Imports the module that a file of packnet_tf holds."""
    stem = path.stem
    name = "packnet_tf" if stem == "__init__" else f"packnet_tf.{stem}"
    return importlib.import_module(name)


def imports(tree):
    """Returns the full names of all that is imported, in functions too.

    `from a import b` gives "a.b", whether b is a module or not.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = "packnet_tf" if node.level else node.module
            names.update(f"{package}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func).split(".")[-1]
            name = node.args[0]
            if function in (
                "__import__",
                "import_module",
                "importorskip",
            ) and isinstance(name, ast.Constant):
                names.add(name.value)
    return names


def strings(tree):
    """Returns all strings of a file but its docstrings."""
    docstrings = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node not in docstrings
    ]
