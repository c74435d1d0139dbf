"""Holds what the documents say of names, flags and files to what there is."""

import ast
import inspect
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap

import keras
import pytest
from sources import ROOT

import packnet_tf
from packnet_tf import command_line
from packnet_tf import distribute
from packnet_tf import sequence

MAX_COLUMNS = 80
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "examples/data/*.md")
    for path in ROOT.glob(pattern)
)
CONFIGS = sorted(ROOT.glob("configs/*.cfg"))
# What a name of the documents' programs stands for.
KNOWN = {
    "packnet_tf": packnet_tf,
    "packnet_tf.distribute": distribute,
    "sequence": sequence,
    "model": packnet_tf.PackNetModel,
    "device": packnet_tf.PackNetModel,
}


def blocks(path, language):
    """Returns the blocks of code of a document."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    if language != "python":
        # Commands are indented or in a block of their own.
        found += re.findall(r"(?:^    .+\n)+", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def resolve(node):
    """Returns what a name of the library stands for, `None` for others.

    Raises:
        AttributeError: If the library has no such name.
    """
    name = ast.unparse(node)
    if name in KNOWN:
        return KNOWN[name]
    if not isinstance(node, ast.Attribute):
        return None
    owner = resolve(node.value)
    if owner is None or not (inspect.ismodule(owner) or inspect.isclass(owner)):
        return None
    return getattr(owner, node.attr)


def check_call(call):
    """Checks the arguments of a call of the library."""
    function = resolve(call.func)
    if function is None or not callable(function):
        return
    signature = inspect.signature(function)
    of_self = isinstance(call.func, ast.Attribute) and inspect.isclass(
        resolve(call.func.value)
    )
    starred = any(isinstance(each, ast.Starred) for each in call.args)
    if not starred:
        signature.bind_partial(
            *[None] * (len(call.args) + of_self),
            **{word.arg: None for word in call.keywords if word.arg},
        )


def commands(path):
    """Returns the commands of a document that are the project's own."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(
                r"\b(?:python (examples/\S+)|(packnet) )(.*)", line
            )
            if found:
                words = shlex.split(found[3].rstrip("'"), comments=True)
                yield found[1] or found[2], words


@pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_programs_use_what_there_is(path):
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute):
                resolve(node)
            if isinstance(node, ast.Call):
                check_call(node)


def test_a_call_that_is_wrong_is_found():
    for wrong in ("model.prun(0.5)", "packnet_tf.wrap(network, tusk=1)"):
        with pytest.raises((AttributeError, TypeError)):
            check_call(ast.parse(wrong).body[0].value)


def test_commands_have_the_flags_that_they_name():
    asked = {}
    for path in DOCUMENTS:
        for program, words in commands(path):
            asked.setdefault(program, []).append(words)
    assert "packnet" in asked
    assert "examples/fine_grained.py" in asked
    for words in asked.pop("packnet"):
        command_line.parse(["packnet", *words])
    for program, lines in asked.items():
        done = subprocess.run(
            [sys.executable, ROOT / program, "--helpfull"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        known = set(re.findall(r"^ +--(?:\[no\])?(\w+)", done.stdout, re.M))
        known |= {"help", "flagfile"}
        for words in lines:
            for word in words:
                flag = re.match(r"--(\w+)", word)
                assert flag is None or flag[1] in known, (program, word)
                config = re.match(r"--flagfile=(.*)", word)
                assert config is None or (ROOT / config[1]).is_file(), word


@pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_to_files_and_headings(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if heading:
            headings = re.findall(
                r"^#+ (.+)$", pathlib.Path(file).read_text("utf-8"), re.M
            )
            slugs = [each.lower().replace(" ", "-") for each in headings]
            assert heading in slugs, target


def test_every_public_name_is_in_a_document():
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    names = set(packnet_tf.__all__)
    inherited = set(dir(keras.Model))
    names |= {
        name
        for name in dir(packnet_tf.PackNetModel)
        if not name.startswith("_") and name not in inherited
    }
    missing = [
        name for name in sorted(names) if not re.search(rf"\b{name}\b", text)
    ]
    assert not missing


@pytest.mark.parametrize(
    "path", DOCUMENTS + CONFIGS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_lines_of_prose_are_short(path):
    found = [
        f"{number}: {len(line)} columns"
        for number, line in enumerate(
            path.read_text(encoding="utf-8").splitlines(), 1
        )
        if len(line) > MAX_COLUMNS and not line.startswith(("|", "--tasks="))
    ]
    assert not found
