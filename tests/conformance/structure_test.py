"""Holds packnet_tf to its layers, its rules for code and its docstrings."""

import ast
import inspect
import re

import pytest
from sources import MODULES
from sources import imports
from sources import load
from sources import parse
from sources import strings

# Lowest first. A module imports from lower layers only, so modules that share
# a layer know nothing of each other. Every module is as low as it can be.
LAYERS = (
    (
        "behind",
        "entropy_coding",
        "errors",
        "flag_words",
        "flat_values",
        "graphs",
        "hdf5_bytes",
        "initial_values",
        "optimizers",
    ),
    (
        "allocation",
        "backend",
        "byte_planes",
        "compilation",
        "config_limits",
        "criteria",
        "difference",
        "distribute",
        "hdf5_groups",
        "locks",
        "ownership",
        "pack_format",
        "probing",
        "variables",
    ),
    (
        "call_order",
        "files",
        "hdf5_file",
        "labels",
        "pack_reader",
        "ranking",
        "record",
        "registry",
        "update",
        "visibility",
    ),
    (
        "carrying",
        "configurations",
        "fused_update",
        "layers",
        "pack_writer",
        "selection",
        "task_view",
        "tasks",
    ),
    (
        "gradients",
        "inventory",
        "keras_file",
        "planning",
        "schedules",
        "value_streams",
    ),
    (
        "capacity",
        "cloning",
        "fingerprint",
        "pruning",
        "sizes",
        "task_plan",
        "trainability",
    ),
    ("computing", "endpoints", "heads", "progress", "sharing"),
    ("reporting", "saved_models"),
    ("litert", "training"),
    ("export",),
    ("command_line", "exporting"),
    ("saving",),
    ("archiving",),
    ("declarations", "removing"),
    ("model",),
    ("archive", "callbacks", "inspection", "loading", "wrapping"),
    ("cli_inputs", "outlook", "task_delta", "task_work"),
    ("plan", "sequence"),
    ("cli",),
    ("__main__",),
    ("__init__",),
)
FORBIDDEN = (
    "keras.src",
    "keras_cv",
    "tensorflow.python",
    "tensorflow_datasets",
    "tf.python",
)
TFMOT = "tensorflow_model_optimization"
MAX_LINES = 499

each_module = pytest.mark.parametrize(
    "path", MODULES, ids=[path.stem for path in MODULES]
)


def is_within(name, package):
    return name == package or name.startswith(f"{package}.")


def own_modules(path):
    """Returns which modules of packnet_tf a module imports."""
    stems = {module.stem for module in MODULES}
    found = set()
    for name in imports(parse(path)):
        if is_within(name, "packnet_tf"):
            module = (*name.split("."), "")[1]
            found.add(module if module in stems else "__init__")
    return found


def all_names(path):
    """Returns dotted names in the code: imported, read, or in a string."""
    tree = parse(path)
    attributes = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    }
    return imports(tree) | attributes | set(strings(tree))


def public_definitions(path):
    """Yields name, node and object of public functions, classes, methods.

    A method that overrides one of a base class is left out: it is documented
    there.
    """
    module = load(path)
    for node in parse(path).body:
        if not is_public(node):
            continue
        value = getattr(module, node.name)
        yield node.name, node, value
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if is_public(method) and not any(
                    hasattr(base, method.name) for base in value.__bases__
                ):
                    yield f"{node.name}.{method.name}", method, None


def is_public(node):
    return (
        isinstance(node, (ast.AsyncFunctionDef, ast.ClassDef, ast.FunctionDef))
        and not node.name.startswith("_")
        and not any(
            ast.unparse(decorator).endswith((".setter", ".deleter"))
            for decorator in node.decorator_list
        )
    )


def documented_arguments(docstring):
    """Returns the names that the section Args explains, in order."""
    section = re.search(
        r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL
    )
    if section is None:
        return []
    return re.findall(r"^    (\*{0,2}\w+):", section[1], re.MULTILINE)


def arguments(function):
    """Returns the names of a function's parameters, in order."""
    stars = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    return [
        stars.get(parameter.kind, "") + parameter.name
        for parameter in inspect.signature(function).parameters.values()
    ]


def test_layers_list_every_module_once():
    listed = [name for layer in LAYERS for name in layer]
    modules = [path.stem for path in MODULES]
    assert not set(modules) - set(listed), "LAYERS lacks these modules"
    assert not set(listed) - set(modules), "LAYERS has these, which are gone"
    assert len(listed) == len(modules), "LAYERS lists a module twice"


@each_module
def test_imports_point_down(path):
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    if path.stem not in level:
        pytest.skip("not in LAYERS, which is another test")
    wrong = [
        name
        for name in sorted(own_modules(path))
        if name in level and level[name] >= level[path.stem]
    ]
    assert not wrong, (
        f"{path.name} imports {', '.join(wrong)}, which LAYERS does not have "
        f"below {path.stem}"
    )


@each_module
def test_imports_stay_public(path):
    wrong = [
        name
        for name in sorted(all_names(path))
        if any(is_within(name, package) for package in FORBIDDEN)
    ]
    assert not wrong, f"{path.name} uses {', '.join(wrong)}"


@each_module
def test_only_schedules_touches_tfmot(path):
    touches = any(is_within(name, TFMOT) for name in all_names(path))
    assert touches == (path.stem == "schedules")


@each_module
def test_errors_are_raised_not_asserted(path):
    lines = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Assert)
    ]
    assert not lines, f"{path.name} asserts in lines {lines}"


@each_module
def test_print_is_only_a_default(path):
    tree = parse(path)
    allowed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            both = (node.posonlyargs + node.args, node.defaults)
            pairs = list(zip(*(reversed(part) for part in both)))
            pairs += zip(node.kwonlyargs, node.kw_defaults)
            allowed |= {
                default
                for argument, default in pairs
                if argument.arg == "print_fn"
            }
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name)
        and node.id == "print"
        and node not in allowed
    ]
    assert not lines, f"{path.name} prints in lines {lines}: use `print_fn`"


@each_module
def test_files_stay_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines: split it"


@each_module
def test_public_names_have_docstrings(path):
    assert ast.get_docstring(parse(path)), f"{path.name} has no docstring"
    missing = [
        name
        for name, node, _ in public_definitions(path)
        if not ast.get_docstring(node)
    ]
    assert not missing, f"{path.name}: no docstring on {', '.join(missing)}"


@each_module
def test_docstrings_explain_every_argument(path):
    wrong = [
        f"{name}({', '.join(arguments(value))})"
        for name, node, value in public_definitions(path)
        if isinstance(node, ast.FunctionDef)
        and value is not None
        and documented_arguments(ast.get_docstring(node) or "")
        != arguments(value)
    ]
    assert not wrong, (
        f"{path.name}: the section Args should have exactly the parameters, "
        f"in their order: {'; '.join(wrong)}"
    )
