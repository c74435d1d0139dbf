"""Holds BUILD and MODULE.bazel to the files, their imports and setup.py.

BUILD is read as Python, of which its language is a part. A failure says which
target lacks or has too much; for a file without target it prints the target.
"""

import ast
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
from sources import EXAMPLES
from sources import MODULES
from sources import ROOT
from sources import TESTS
from sources import imports
from sources import parse
from sources import strings

import packnet_tf

RUNNER = ROOT / "tests" / "run_pytest.py"
# Packages whose name is not the name of the module they bring.
PACKAGES = {"PIL": "pillow", "absl": "absl_py"}

FILES = [path for path in MODULES + EXAMPLES + TESTS if path != RUNNER]
LOCAL_MODULES = {path.stem: path for path in EXAMPLES + TESTS}
# Folders of examples whose modules are imported as folder.module.
GROUPS = ("loading", "methods", "program", "reporting")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def is_program(path):
    """Returns whether a file has an `if __name__ == "__main__"`."""
    return any(
        isinstance(node, ast.If)
        and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in parse(path).body
    )


def declared_packages():
    """Returns the packages that setup.py installs, tests included."""
    call = next(
        node
        for node in ast.walk(parse(ROOT / "setup.py"))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "setuptools.setup"
    )
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    requirements = ast.literal_eval(arguments["install_requires"])
    requirements += ast.literal_eval(arguments["extras_require"])["test"]
    names = (re.match(r"[\w.-]+", line)[0] for line in requirements)
    return {re.sub(r"[-_.]+", "_", name).lower() for name in names}


def to_label(name):
    """Turns the name of an import into a label; `None` for Python's own."""
    top, _, rest = name.partition(".")
    if top == "packnet_tf":
        module = rest.split(".")[0]
        if (ROOT / "packnet_tf" / f"{module}.py").exists():
            return f":{module}"
        return ":packnet_tf"
    if top in GROUPS:
        return f":{rest.split('.')[0]}"
    if top in LOCAL_MODULES:
        return f":{top}"
    if top in sys.stdlib_module_names:
        return None
    return f"@pypi//{PACKAGES.get(top, top.lower())}"


def labels(tree):
    return {to_label(name) for name in imports(tree)} - {None}


def labels_of_programs_in_strings(tree):
    """Returns what programs import that a test runs with `python -c`."""
    known = {f"@pypi//{name}" for name in declared_packages()}
    found = set()
    for text in strings(tree):
        try:
            found |= labels(ast.parse(textwrap.dedent(text)))
        except (SyntaxError, ValueError):
            continue  # Not a program.
    return {name for name in found if name[0] == ":" or name in known}


def expected_target(path):
    """Returns the attributes that the target of a Python file should have."""
    tree = parse(path)
    name = "packnet_tf" if path.name == "__init__.py" else path.stem
    target = {"rule": "py_library", "name": name, "srcs": [relative(path)]}
    deps = labels(tree)
    if path in TESTS and path.stem.endswith("_test"):
        deps |= labels(parse(RUNNER)) | {":conftest"}
        deps |= labels_of_programs_in_strings(tree)
        text = "\n".join(strings(tree))
        data = {
            f":{program.stem}"
            for program in EXAMPLES
            if is_program(program) and program.name in text
        }
        if path.parent.name != "tests":
            data.add(":project")
        target |= {
            "rule": "py_test",
            "srcs": sorted([relative(path), relative(RUNNER)]),
            "args": [relative(path)],
            "main": relative(RUNNER),
            "data": sorted(data - deps),
        }
    elif path not in MODULES:
        grouped = path.parent.name in GROUPS
        root = path.parent.parent if grouped else path.parent
        target["imports"] = [relative(root)]
        if is_program(path):
            target["rule"] = "py_binary"
    target["deps"] = sorted(deps)
    return target


def to_text(target):
    """Formats a target as buildifier does."""
    order = "name size srcs args data imports main visibility deps".split()
    lines = [f"{target['rule']}("]
    for key in (key for key in order if target.get(key)):
        value = target[key]
        if isinstance(value, str):
            lines.append(f'    {key} = "{value}",')
        elif len(value) == 1:
            lines.append(f'    {key} = ["{value[0]}"],')
        else:
            items = [f'        "{item}",' for item in value]
            lines += [f"    {key} = [", *items, "    ],"]
    return "\n".join([*lines, ")\n"])


def evaluate(node):
    """Returns the value of an attribute in BUILD."""
    if isinstance(node, ast.BinOp):
        return evaluate(node.left) + evaluate(node.right)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "glob":
        return sorted(
            relative(path)
            for pattern in ast.literal_eval(node.args[0])
            for path in ROOT.glob(pattern)
            if path.is_file()
        )
    return ast.literal_eval(node)


def calls(path):
    """Returns the calls of a Bazel file: pairs of name and attributes."""
    return [
        (
            ast.unparse(node.value.func),
            {item.arg: evaluate(item.value) for item in node.value.keywords},
        )
        for node in parse(path).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]


def build_targets():
    """Returns all targets of BUILD as lists of attributes, by name."""
    targets = {}
    for rule, attributes in calls(ROOT / "BUILD"):
        if "name" in attributes:
            attributes["rule"] = rule
            targets.setdefault(attributes["name"], []).append(attributes)
    return targets


def differences(found, wanted):
    """Says how a target differs from what it should be."""
    for key in ("rule", "srcs", "args", "main", "imports", "data", "deps"):
        if key == "data" and wanted["rule"] != "py_test":
            continue  # A library knows best which files it reads.
        have, want = found.get(key) or [], wanted.get(key) or []
        if have == want:
            continue
        if isinstance(have, str) or isinstance(want, str):
            yield f'{key} should be "{want}", is "{have}"'
            continue
        lacks = [item for item in want if item not in have]
        extra = [item for item in have if item not in want]
        if lacks:
            yield f"{key} lacks {', '.join(lacks)}"
        if extra:
            yield f"{key} has too much: {', '.join(extra)}"
        if not lacks and not extra:
            yield f"{key} should be in this order, once: {', '.join(want)}"


def report(problems):
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_names_are_used_once():
    report(
        [
            f'BUILD has {len(same)} targets named "{name}": keep one'
            for name, same in build_targets().items()
            if len(same) > 1
        ]
    )
    names = [expected_target(path)["name"] for path in FILES]
    report(
        [
            f'{relative(path)}: another file gives a target named "{name}" '
            "as well; choose another name for one of them"
            for path, name in zip(FILES, names)
            if names.count(name) > 1
        ]
    )


def test_every_file_has_its_target():
    targets = build_targets()
    problems = []
    for path in FILES:
        wanted = expected_target(path)
        if wanted["name"] not in targets:
            problems.append(
                f"BUILD has no target for {relative(path)}. Add:\n\n"
                + to_text(wanted)
            )
            continue
        problems += [
            f"BUILD, target {wanted['name']}: {difference}"
            for difference in differences(targets[wanted["name"]][0], wanted)
        ]
    report(problems)


def test_every_target_has_its_files():
    targets = build_targets()
    files = {expected_target(path)["name"] for path in FILES}
    problems = []
    for name, (target, *_) in targets.items():
        if target["rule"].startswith("py_") and name not in files:
            problems.append(f"BUILD, target {name}: no file has it; remove it")
        for key in ("srcs", "data", "deps"):
            problems += [
                f"BUILD, target {name}: {key} names {item}, which does not "
                "exist"
                for item in target.get(key, [])
                if not item.startswith("@")
                and item[1:] not in targets
                and not (ROOT / item).is_file()
            ]
        if not target.get("srcs"):
            problems.append(f"BUILD, target {name}: no srcs")
    report(problems)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("configs", "configs/*"), ("example_data", "examples/data/*")],
)
def test_filegroup_has_every_file(name, pattern):
    files = sorted(relative(path) for path in ROOT.glob(pattern))
    assert build_targets()[name][0]["srcs"] == files


def test_the_library_ships_its_type_marker():
    assert "packnet_tf/py.typed" in build_targets()["packnet_tf"][0]["data"]


def test_setup_declares_every_package():
    declared = declared_packages()
    report(
        [
            f"setup.py does not install {label[7:]}, which {relative(path)} "
            "imports: add it to `install_requires` or to the extra `test`"
            for path in FILES
            for label in expected_target(path)["deps"]
            if label.startswith("@pypi//") and label[7:] not in declared
        ]
    )


def test_module_has_the_version_of_the_library():
    module = dict(calls(ROOT / "MODULE.bazel"))["module"]
    assert module["name"] == "packnet_tf"
    assert module["version"] == packnet_tf.__version__, (
        "MODULE.bazel: set `version` to packnet_tf.__version__"
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bazel"), reason="bazel is not installed")
def test_bazel_reads_the_files():
    done = subprocess.run(
        ["bazel", "--batch", "query", "--lockfile_mode=off", "//..."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {f"//:{name}" for name in build_targets()} <= set(
        done.stdout.split()
    )
