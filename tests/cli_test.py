import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from absl import flags

import packnet_tf
from packnet_tf import cli
from packnet_tf import command_line
from packnet_tf import progress

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(network):
    """A packed model of three tasks, which no test changes."""
    model = packnet_tf.wrap(network(), task="one")
    model.prune(0.5)
    model.freeze_task()
    for name, units in (("two", 3), ("three", 2)):
        model.add_task(name, units=units)
        model.prune(0.5)
        model.freeze_task()
    return model


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "model.keras"
    model.save(path)
    return path


@pytest.fixture
def saved(whole, tmp_path):
    """A file of the model in a folder of its own."""
    return pathlib.Path(shutil.copy(whole, tmp_path))


@pytest.fixture
def packnet(capsys):
    """Runs a command line in this process."""

    def run(*arguments):
        args = command_line.parse(["packnet", *map(str, arguments)])
        code = cli.main(args)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def fingerprints(model):
    return {name: p.fingerprint for name, p in model.verify().items()}


def test_inspect_prints_tasks_and_capacity(packnet, saved):
    code, out, _ = packnet("inspect", saved)
    assert code == 0
    assert "model.keras" in out
    assert "three *" in out
    assert "conv/kernel" in out


def test_inspect_as_json_is_what_inspection_finds(packnet, saved, model):
    code, out, _ = packnet("inspect", saved, "--json")
    assert code == 0
    data = json.loads(out)
    assert [task["name"] for task in data["tasks"]] == model.task_names
    assert data["file_size"] == saved.stat().st_size


def test_inspect_writes_a_report(packnet, saved, tmp_path):
    page = tmp_path / "report.html"
    assert packnet("inspect", saved, f"--report={page}")[0] == 0
    assert "model.keras" in page.read_text()


def test_a_run_folder_is_looked_into(packnet, saved, tmp_path, model):
    (tmp_path / "run").mkdir()
    saved.rename(tmp_path / "run" / "packed.keras")
    code, out, _ = packnet("verify", tmp_path / "run", "--json")
    assert code == 0
    found = json.loads(out)["tasks"]
    assert {k: v["fingerprint"] for k, v in found.items()} == fingerprints(
        model
    )


@pytest.fixture
def sequence_folder(model, tmp_path):
    """A folder as `sequence.run(checkpoint_dir=...)` leaves it."""
    state = progress.Progress([])
    for _ in range(2):
        progress.write(tmp_path / "birds", state, model)
    return tmp_path / "birds"


def test_the_folder_of_a_sequence_is_looked_into(
    packnet, sequence_folder, model
):
    code, out, _ = packnet("verify", sequence_folder, "--json")
    assert code == 0
    data = json.loads(out)
    assert data["path"] == str(sequence_folder / "checkpoint-000002.keras")
    assert {k: v["fingerprint"] for k, v in data["tasks"].items()} == (
        fingerprints(model)
    )
    assert packnet("inspect", sequence_folder)[0] == 0
    plan = ["plan", sequence_folder, "--tasks=four"]
    assert packnet(*plan)[0] == 0


@pytest.mark.parametrize("name", ["../model.keras", "link.keras"])
def test_the_folder_of_a_sequence_leads_nowhere_else(
    packnet, sequence_folder, saved, name
):
    (sequence_folder / "link.keras").symlink_to(saved)
    file = sequence_folder / "progress.json"
    data = json.loads(file.read_text())
    data.update(model=name, size=saved.stat().st_size)
    file.write_text(json.dumps(data))
    code, out, err = packnet("verify", sequence_folder)
    assert code == cli.FAILED
    assert out == ""
    assert "a name that none has" in err


def test_a_model_saved_as_a_folder_is_looked_into(packnet, model, tmp_path):
    model.save(tmp_path / "model", zipped=False)
    assert packnet("verify", tmp_path / "model")[0] == 0
    assert packnet("plan", tmp_path / "model", "--tasks=four")[0] == 0


@pytest.mark.parametrize("command", [[], ["plan"], ["verify"]])
def test_help_says_what_a_run_folder_is(capsys, command):
    with pytest.raises(SystemExit) as raised:
        command_line.parse(["packnet", *command, "--help"])
    assert raised.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for told in (
        *("run folder", "packed.keras", "checkpoint_dir", "progress.json"),
        *("--import", "--trust"),
    ):
        assert told in out


def write_files(make_layer):
    """Writes a model with a layer in backbone and head, as all files."""
    network = [keras.Input((4,)), keras.layers.Dense(5), make_layer()]
    model = packnet_tf.wrap(keras.Sequential(network), head=None)
    model.add_task("one", units=3)
    model.prune(0.5)
    model.freeze_task()
    model.add_task("two", head=keras.Sequential([make_layer()]))
    model.prune(0.5)
    model.freeze_task()
    model.save("model.keras")
    packnet_tf.save_pack(model, "model.packnet")
    packnet_tf.save_task(model, "two", "two.packtask")
    model.remove_task("two")
    packnet_tf.save_pack(model, "device.packnet")


OWN = "own.layers"  # No package that Bazel or pip knows.
LAYERS = """
import keras

print("imported")


@keras.saving.register_keras_serializable("cli_test")
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x
"""


@pytest.fixture
def own_layers(tmp_path, monkeypatch, capsys):
    """Files of a model with a layer that this process does not know."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "layers.py").write_text(LAYERS)
    monkeypatch.chdir(tmp_path)

    def forget():
        keras.saving.get_custom_objects().pop("cli_test>Twice", None)
        for name in ("own", OWN):
            sys.modules.pop(name, None)

    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        twice = importlib.import_module(OWN).Twice
    write_files(twice)
    capsys.readouterr()
    forget()
    yield tmp_path
    forget()


@pytest.mark.parametrize(
    "command",
    [
        "verify model.keras",
        "verify model.packnet",
        "inspect model.packnet",
        "export model.keras --task=one -o one.keras",
        "pack model.keras -o again.packnet",
        "unpack model.packnet -o again.keras",
        "delta model.packnet --task=two -o again.packtask",
        "apply device.packnet two.packtask -o device.packnet",
        "remove model.keras --task=two -o model.keras",
        "plan model.packnet --tasks=three",
        "plan model.keras --tasks=three",
    ],
)
def test_layers_of_a_users_own_are_imported(packnet, own_layers, command):
    path = list(sys.path)
    before = sorted(own_layers.rglob("*"))
    code, out, err = packnet(*command.split())
    assert code == cli.FAILED
    assert out == ""
    assert "`--import`" in err
    assert sorted(own_layers.rglob("*")) == before
    code, out, err = packnet(
        *command.split(), "--import=json", f"--import={OWN}", "--json"
    )
    assert code == 0, err
    assert json.loads(out)
    assert err == "imported\n"
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nosuch", "No module named 'nosuch'"),
        ("own.nosuch", "No module named 'own.nosuch'"),
        ("own.fails", "ValueError: this is my mistake"),
        ("own.stops", "SystemExit: 4"),
        ("own.wrong", "SyntaxError"),
    ],
)
def test_modules_that_cannot_be_imported_are_told_of(
    packnet, tmp_path, name, what, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for stem, text in (
        ("fails", "raise ValueError('this is my mistake')"),
        ("stops", "raise SystemExit(4)"),
        ("wrong", "1 +"),
    ):
        (tmp_path / "own" / f"{stem}.py").write_text(text)
    try:
        code, out, err = packnet("verify", "none.keras", f"--import={name}")
    finally:
        sys.modules.pop("own", None)
    assert code == cli.FAILED
    assert out == ""
    assert what in err
    assert err.endswith(f"Received: --import={name}, in '{tmp_path}'\n")


def test_code_in_a_file_needs_trust(packnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make_layer():
        return keras.layers.Lambda(keras.ops.tanh, output_shape=(5,))

    write_files(make_layer)
    for command in (
        "verify model.keras",
        "verify model.packnet",
        "apply device.packnet two.packtask -o new.packnet",
        "plan model.keras --tasks=three",
        "plan model.packnet --tasks=three",
    ):
        code, _, err = packnet(*command.split())
        assert code == cli.FAILED
        assert "load a file that you trust with `--trust`" in err
        code, _, err = packnet(*command.split(), "--trust")
        assert code == 0, err


@pytest.mark.parametrize(
    "command",
    ["pack", "delta --task=two", "export", "export --task=two --format=keras"],
)
@pytest.mark.parametrize("way", ["same", "relative", "link", "linked", "hard"])
def test_the_model_is_not_overwritten_by_less(
    packnet, model, tmp_path, command, way, monkeypatch
):
    read = written = tmp_path / "model"
    packnet_tf.save_pack(model, read.with_suffix(".packnet"))
    read.with_suffix(".packnet").rename(read)
    if way == "relative":
        (tmp_path / "folder").mkdir()
        monkeypatch.chdir(tmp_path / "folder")
        written = "../model"
    elif way == "link":
        written = tmp_path / "link"
        written.symlink_to("model")
    elif way == "linked":
        read = tmp_path / "link"
        read.symlink_to("model")
    elif way == "hard":
        written = tmp_path / "other"
        written.hardlink_to(read)
    before = read.read_bytes()
    name, *options = command.split()
    code, out, err = packnet(name, read, *options, "-o", written)
    assert code == cli.FAILED
    assert out == ""
    assert "less in it than the model" in err
    assert read.read_bytes() == before


def test_the_model_of_a_folder_is_not_overwritten_by_less(
    packnet, model, sequence_folder, tmp_path
):
    model.save(tmp_path / "model", zipped=False)
    inside = sequence_folder / "checkpoint-000002.keras"
    for read, written in (
        (sequence_folder, inside),
        (tmp_path / "model", tmp_path / "model"),
        (tmp_path / "model", tmp_path / "model" / "assets" / "one.keras"),
    ):
        before = sorted(tmp_path.rglob("*"))
        export = ["export", read, "--task=one", "--format=keras"]
        code, _, err = packnet(*export, "-o", written)
        assert code == cli.FAILED
        assert "less in it than the model" in err
        assert sorted(tmp_path.rglob("*")) == before
    # Beside it there is room.
    assert (
        packnet("pack", sequence_folder, "-o", tmp_path / "x.packnet")[0] == 0
    )


@pytest.mark.parametrize(
    "command",
    [
        "pack model.keras --output=gs://bucket/model.packnet",
        "apply model.keras x --output=s3://bucket/model.keras",
        "inspect model.keras --report=gs://bucket/report.html",
    ],
)
def test_results_are_written_to_local_paths(
    packnet, tmp_path, command, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # Before a model is looked for.
    code, _, err = packnet(*command.split())
    assert code == cli.FAILED
    assert "local path" in err
    assert list(tmp_path.iterdir()) == []


def test_verify_tells_of_a_task_that_has_changed(packnet, model, saved):
    proof = model.verify()["two"].fingerprint.encode()
    with zipfile.ZipFile(saved) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert proof in parts["config.json"]
    parts["config.json"] = parts["config.json"].replace(proof, b"0" * 64)
    with zipfile.ZipFile(saved, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    code, out, err = packnet("verify", saved, "--json")
    assert code == cli.CHANGED
    assert json.loads(out)["error"]["kind"] == "FingerprintError"
    assert "two" in err


def test_a_pack_and_back(packnet, saved, model, tmp_path):
    pack, again = tmp_path / "model.packnet", tmp_path / "again.keras"
    code, out, _ = packnet("pack", saved, "--output", pack, "--json")
    assert code == 0
    assert json.loads(out) == {
        "written": str(pack),
        "bytes": pack.stat().st_size,
        "rounded": False,
        "lossy": False,
    }
    assert packnet("unpack", pack, "-o", again)[0] == 0
    assert fingerprints(packnet_tf.load_model(again)) == fingerprints(model)


@pytest.mark.filterwarnings("default:The values in the pack file were rounded")
def test_a_pack_may_be_rounded_and_says_so(packnet, saved, tmp_path):
    exact, rounded = tmp_path / "exact.packnet", tmp_path / "rounded.packnet"
    assert "lossy" not in packnet("pack", saved, "-o", exact)[1]
    pack = ["pack", saved, "-o", rounded, "--dtype=bfloat16"]
    code, out, _ = packnet(*pack)
    assert code == 0
    assert "rounded to bfloat16, which is lossy" in out
    data = json.loads(packnet(*pack, "--json")[1])
    assert (data["rounded"], data["lossy"]) == (True, True)
    assert rounded.stat().st_size < exact.stat().st_size
    code, _, err = packnet("verify", rounded)
    assert code == 0
    assert re.fullmatch(r"warning: The values .* were rounded .*\.\n", err)
    for path, told in ((saved, None), (exact, False), (rounded, True)):
        data = json.loads(packnet("inspect", path, "--json")[1])
        assert data["rounded"] is told
    assert "are rounded, which is lossy" in packnet("inspect", rounded)[1]


def test_a_delta_brings_a_device_up_to_date(packnet, saved, model, tmp_path):
    device, delta = tmp_path / "device.keras", tmp_path / "three.packtask"
    assert packnet("delta", saved, "--task=three", "-o", delta)[0] == 0
    assert packnet("remove", saved, "--task=three", "-o", device)[0] == 0
    assert packnet_tf.load_model(device).task_names == ["one", "two"]
    assert packnet("apply", device, delta, "-o", device)[0] == 0
    assert fingerprints(packnet_tf.load_model(device)) == fingerprints(model)
    code, _, err = packnet("apply", device, delta, "-o", device)
    assert code == cli.FAILED
    assert "order" in err


def test_remove_takes_later_tasks_too_if_they_are_named(
    packnet, saved, tmp_path
):
    rest = tmp_path / "rest.packnet"
    code, _, err = packnet("remove", saved, "--task=two", "-o", rest)
    assert code == cli.FAILED
    assert "Name them all in `--also`" in err
    assert "--also=three. Received: no --also\n" in err
    assert not rest.exists()
    arguments = ["--task=two", "--also=three", "-o", rest]
    assert packnet("remove", saved, *arguments)[0] == 0
    assert packnet_tf.load_pack(rest).task_names == ["one"]


def test_export_writes_one_task_or_all(packnet, saved, model, tmp_path):
    plain, names = tmp_path / "two.keras", tmp_path / "names.txt"
    assert packnet("export", saved, "--task=two", "-o", plain)[0] == 0
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    np.testing.assert_array_equal(
        keras.saving.load_model(plain).predict(x, verbose=0),
        model.predict(x, task="two", verbose=0),
    )
    names.write_text("cat\ndog\nfish\n", encoding="utf-8-sig")
    labelled = [f"--class_names={names}", "-o", plain]
    assert packnet("export", saved, "--task=two", *labelled)[0] == 0
    found = keras.saving.load_model(plain).predict(x, verbose=0)
    assert set(found) == {"scores", "labels"}
    assert set(found["labels"]) <= {b"cat", b"dog", b"fish"}
    folder = tmp_path / "all"
    assert packnet("export", saved, "-o", folder)[0] == 0
    assert (folder / "saved_model.pb").is_file()


def test_export_goes_by_the_format_if_the_suffix_says_nothing(
    packnet, saved, tmp_path
):
    export = ["export", saved, "--task=two"]
    path = tmp_path / "out"
    assert packnet(*export, "--format=keras", "-o", path)[0] == 0
    assert zipfile.is_zipfile(path)
    path = tmp_path / "out.bin"
    assert packnet(*export, "--format=litert", "-o", path)[0] == 0
    assert path.read_bytes()[4:8] == b"TFL3"


def test_export_quantizes_with_examples_from_a_file(packnet, tmp_path):
    inputs = [keras.Input((3,), name=name) for name in ("b", "a")]
    features = keras.layers.Concatenate()(inputs)
    features = keras.layers.Dense(4, name="dense")(features)
    model = packnet_tf.wrap(keras.Model(inputs, features), head=None)
    model.add_task("one", units=2)
    saved, path = tmp_path / "model.keras", tmp_path / "one.tflite"
    model.save(saved)
    examples = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    np.savez(tmp_path / "x.npz", a=examples, b=10 * examples)
    export = ["export", saved, "--task=one", "-o", path, "--quantize=int8"]
    given = f"--representative_data={tmp_path}/x.np"
    assert packnet(*export, f"{given}z")[0] == 0
    # By the order of the inputs: each is measured with its own.
    expected = tmp_path / "expected.tflite"
    model.export_task(
        "one",
        expected,
        quantize="int8",
        representative_data=[10 * examples, examples],
    )
    assert path.read_bytes() == expected.read_bytes()
    np.savez(tmp_path / "x.npz", a=examples, c=examples)
    code, _, err = packnet(*export, f"{given}z")
    assert code == cli.FAILED
    assert "['b', 'a']" in err
    np.save(tmp_path / "x.npy", examples)
    code, _, err = packnet(*export, f"{given}y")
    assert code == cli.FAILED
    assert "representative_data" in err


@pytest.mark.parametrize(
    ("option", "content", "what"),
    [
        ("class_names", "Löwe\n".encode("latin-1"), "UTF-8"),
        ("class_names", None, "No such file"),
        ("class_names", "folder", "Is a directory"),
        ("representative_data", b"no array", "numpy.save"),
        ("representative_data", b"PK\3\4", "numpy.save"),
        ("representative_data", b"", "numpy.save"),
        ("representative_data", None, "No such file"),
        ("representative_data", "folder", "Is a directory"),
    ],
)
def test_files_are_read_before_the_model(
    packnet, option, content, what, tmp_path
):
    file = tmp_path / "file"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    export = ["export", tmp_path / "none", "--task=one", "-o", tmp_path / "x"]
    if option == "representative_data":
        export += ["--format=litert", "--quantize=int8"]
    code, out, err = packnet(*export, f"--{option}={file}")
    assert code == cli.FAILED
    assert out == ""
    assert what in err
    assert f"packnet export: --{option} is a " in err
    assert f" Received: {str(file)!r}: " in err


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_a_report_needs_matplotlib(
    packnet, saved, suffix, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = tmp_path / f"report{suffix}"
    code, out, err = packnet("inspect", saved, f"--report={page}")
    assert code == cli.FAILED
    assert out == ""
    assert "pip install packnet_tf[plot]" in err
    assert not page.exists()


def test_flags_of_other_programs_do_not_clash(packnet, saved):
    # As of a program that has the command line in it.
    others = flags.FlagValues()
    flags.DEFINE_string("json", None, "A file.", flag_values=others)
    absl_flag = others["json"]
    present = "json" in flags.FLAGS
    if not present:
        flags.FLAGS["json"] = absl_flag
    try:
        assert packnet("inspect", saved, "--json")[0] == 0
    finally:
        if not present:
            delattr(flags.FLAGS, "json")


def test_plan_shares_a_network_of_keras_out(packnet):
    code, out, _ = packnet("plan", "MobileNet", "--tasks=imagenet,a:2,b:1")
    assert code == 0
    assert "imagenet" in out
    assert out.endswith("not counted: heads of a, b\n")
    data = json.loads(packnet("plan", "MobileNet", "--tasks=i,a", "--json")[1])
    assert data["capacity"]["heads"] == {"i": 1024 * 1000 + 1000, "a": None}
    assert data["uncounted_heads"] == ["a"]
    arguments = ["--tasks=imagenet,a,b", "--units=a:7,b:9", "--json"]
    data = json.loads(packnet("plan", "MobileNet", *arguments)[1])
    assert list(data["sparsities"]) == ["imagenet", "a", "b"]
    assert data["capacity"]["heads"]["a"] == 1024 * 7 + 7
    assert data["uncounted_heads"] == []
    owned = data["capacity"]["owned"].values()
    assert max(owned) - min(owned) < 0.001 * data["capacity"]["total"]


def test_plan_takes_names_of_networks_in_any_case(packnet):
    code, out, _ = packnet("plan", "mobilenet", "--tasks=one", "--json")
    assert code == 0
    same = packnet("plan", "MobileNet", "--tasks=one", "--json")
    assert same[1] == out


def test_plan_shares_what_is_left_of_a_packed_model(packnet, saved):
    arguments = ["--tasks=four", "--future=1", "--units=four:5", "--json"]
    data = json.loads(packnet("plan", saved, *arguments)[1])
    assert data["sparsities"] == {"four": 0.5}
    assert len(data["future"]) == 1


def test_plan_is_of_tasks_to_come_alone(packnet, saved):
    arguments = ["--tasks=", "--future=3", "--share=0.01", "--json"]
    data = json.loads(packnet("plan", saved, *arguments)[1])
    assert data["sparsities"] == {}
    assert len(data["future"]) == 3


def test_plan_shares_a_plain_model_out(packnet, network, tmp_path):
    network().save(tmp_path / "plain.keras")
    arguments = ["--tasks=one,two", "--sparsities=0.75,0", "--units=two:2"]
    code, out, _ = packnet("plan", tmp_path / "plain.keras", *arguments)
    assert code == 0
    assert "0.75" in out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["verify", "{}/none.keras"], "There is no such file"),
        (["verify", "{}/none.packnet"], "There is no such file"),
        (["verify", "{}/dangling"], "There is no such file"),
        (["verify", "{}/empty.packnet"], "This is not a pack file"),
        (["verify", "{}/cut.packnet"], "size is another than when it was"),
        (["verify", "{}/text.packnet"], "This is not a pack file"),
        (["verify", "{}/empty.packtask"], "This is not a pack file"),
        (["verify", "{}/empty.keras"], "it is too short"),
        (["verify", "{}/text"], "in a `.keras` file, or in a pack file"),
        (["verify", "{}/folder"], "This is no run folder"),
        (["plan", "{}/folder", "--tasks=four"], "This is no run folder"),
        (["pack", "{}/model.keras", "-o", "{}/text/x"], "File exists"),
        (
            ["delta", "{}/model.keras", "--task=one", "-o", "{}/d"],
            "Save the whole model with `packnet pack`.",
        ),
        (
            ["delta", "{}/model.keras", "--task=nine", "-o", "{}/d"],
            "no such task",
        ),
        (
            [
                *("apply", "{}/model.keras", "{}/model.keras"),
                *("-o", "{}/d.packnet"),
            ],
            "This is not a task delta",
        ),
        (
            [
                *("apply", "{}/model.keras", "{}/text.packnet"),
                *("-o", "{}/d.packnet"),
            ],
            "This is not a task delta",
        ),
        (
            ["inspect", "{}/model.keras", "--report={}/page.none"],
            "suffix of a picture",
        ),
        (["pack", "{}/model.keras", "--output="], "ends in its name"),
        (
            ["verify", "{}/model.keras", "--max_bytes=10"],
            "larger than `--max_bytes`",
        ),
        (["verify", "{}/three.packtask"], "with `packnet apply`"),
        (["verify", "{}/model.KERAS"], "by which Keras goes"),
        (
            ["apply", "{}/model.keras", "{}/folder", "-o", "{}/d.packnet"],
            "it is no file",
        ),
        (
            ["plan", "{}/model.keras", "--tasks=three"],
            "Tasks to come are planned",
        ),
        (
            ["plan", "NoNetwork", "--tasks=three"],
            "network in keras.application",
        ),
        (["plan", "vgg61", "--tasks=three"], "such as VGG19 or VGG16"),
    ],
    ids="missing missing_pack dangling empty_pack cut_pack text_pack "
    "empty_delta empty_keras text folder folder_planned nowhere first unknown "
    "apply apply_text report no_name bytes delta capitals "
    "apply_folder frozen network like".split(),
)
def test_what_will_not_do_is_told(
    packnet, saved, model, arguments, what, tmp_path
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("text", "text.packnet"):
        (tmp_path / name).write_text("some text")
    for name in ("empty.packnet", "empty.packtask", "empty.keras"):
        (tmp_path / name).touch()
    if "{}/cut.packnet" in arguments:
        whole = tmp_path / "cut.packnet"
        packnet_tf.save_pack(model, whole)
        os.truncate(whole, whole.stat().st_size // 2)
    packnet_tf.save_task(model, "three", tmp_path / "three.packtask")
    shutil.copy(saved, tmp_path / "model.KERAS")
    before = sorted(tmp_path.iterdir())
    code, out, err = packnet(*(a.format(tmp_path) for a in arguments))
    assert code == cli.FAILED
    assert out == ""
    cause, _, received = err.partition(" Received: ")
    assert what in cause
    assert received
    assert cause.startswith(f"packnet {arguments[0]}: ")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["pack", "x"], ["delta", "x", "-o", "y"], ["verify"]],
    ids="nothing unknown output task path".split(),
)
def test_a_command_line_that_is_not_understood(packnet, arguments):
    with pytest.raises(SystemExit) as raised:
        packnet(*arguments)
    assert raised.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        "export --output=all.keras",
        "export --output=all --format=litert",
        "export --output=all --class_names=x",
        "export --output=all --quantize=float16",
        "export --task=one --output=x.keras --format=litert",
        "export --task=one --output=x.tflite --format=tf_saved_model",
        "export --task=one --output=x.h5 --format=keras",
        "export --task=one --output=x --quantize=float16",
        "export --task=one --output=x.tflite --quantize=int8",
        "export --task=one --output=x.tflite --representative_data=x",
        "unpack --output=x.packnet",
        "pack --output=x.keras",
        "delta --task=one --output=x.keras",
        "delta --task=one --output=x.KERAS",
        "verify --import=",
        "verify --import=own/layers.py",
        "verify --import=.own",
        "verify --import=own --import=own.",
        "apply --output=x delta",
        "remove --task=one --output=x",
        "remove --task=one --output=x.keras --also=a,,b",
        "inspect --report=page",
        "verify --max_bytes=-1",
        "verify --max_bytes=1.5",
        "plan --tasks=",
        "plan --tasks=a,b,a",
        "plan --tasks=a,",
        "plan --tasks=:2",
        "plan --tasks=a:",
        "plan --tasks=a:x",
        "plan --tasks=a:0",
        "plan --tasks=a:-1",
        "plan --tasks=a:inf",
        "plan --tasks=a:nan",
        "plan --tasks=a --units=a",
        "plan --tasks=a --units=b:2",
        "plan --tasks=a --units=a:2.5",
        "plan --tasks=a --units=a:0",
        "plan --tasks=a --units=a:-2",
        "plan --tasks=a --units=a:2,a:3",
        "plan --tasks=a --future=-1",
        "plan --tasks=a --future=1.5",
        "plan --tasks=a --share=0.1",
        "plan --tasks=a --future=2 --share=1",
        "plan --tasks=a --future=2 --share=nan",
        "plan --tasks=a --future=2 --share=0.1 --sparsities=0.5",
        "plan --tasks=a --sparsities=x",
        "plan --tasks=a --sparsities=1",
        "plan --tasks=a --sparsities=-0.1",
        "plan --tasks=a --sparsities=nan",
        "plan --tasks=a --sparsities=0.5,0.5",
        "plan --tasks=a:2 --sparsities=0.5",
    ],
)
def test_flags_that_make_no_sense_are_told_of_at_once(
    capsys, arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command, *flags = arguments.split()
    with pytest.raises(SystemExit) as raised:
        command_line.parse(["packnet", command, "none.keras", *flags])
    assert raised.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"packnet {command}: error: ")
    assert "Received: " in error
    assert list(tmp_path.iterdir()) == []


def test_flags_are_told_in_flags(packnet, capsys):
    with pytest.raises(SystemExit):
        packnet("export", "x", "--task=a", "-o", "x.tflite", "--quantize=int8")
    err = " ".join(capsys.readouterr().err.split())
    assert "Give `--representative_data=`" in err
    assert err.endswith("--quantize=int8, no --representative_data")


def test_suffixes_of_pack_files_may_be_in_capitals(packnet, saved, tmp_path):
    path = tmp_path / "rest.PackNet"
    assert packnet("remove", saved, "--task=three", "-o", path)[0] == 0
    assert packnet_tf.load_pack(path).task_names == ["one", "two"]


def run_program(*arguments, **options):
    environment = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.update(options.pop("env", {}))
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env={**os.environ, **environment},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


PROGRAM = (sys.executable, "-m", "packnet_tf")


def test_the_program_ends_quietly_if_nobody_reads(saved):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        done = run_program(*PROGRAM, "inspect", saved, stdout=closed)
    assert done.returncode == cli.CLOSED
    assert b"Error" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_program_tells_of_a_full_disk(saved):
    with open("/dev/full", "wb") as full:
        done = run_program(*PROGRAM, "inspect", saved, stdout=full)
    assert done.returncode == cli.FAILED
    (line,) = [x for x in done.stderr.splitlines() if b"packnet" in x]
    assert line.startswith(b"packnet inspect: The result cannot be printed: No")
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_the_program_escapes_what_is_no_text(model, tmp_path):
    path = os.fsencode(tmp_path) + b"/bad\xff.packnet"
    packnet_tf.save_pack(model, os.fsdecode(path))
    page = tmp_path / "report.html"
    done = run_program(*PROGRAM, "inspect", path, f"--report={page}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"bad\\udcff.packnet\n")
    assert r"bad\udcff.packnet" in page.read_text("utf-8")


@pytest.mark.parametrize("way", ["module", "script"])
def test_the_program_tells_of_another_backend(way, saved, tmp_path):
    script = tmp_path / "packnet"
    script.write_text("from packnet_tf.cli import run\nrun()\n")
    program = PROGRAM if way == "module" else (sys.executable, script)
    env = {"KERAS_BACKEND": "numpy"}
    done = run_program(*program, "verify", saved, env=env)
    assert done.returncode == cli.FAILED
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(b"packnet: packnet_tf ")
    assert b"KERAS_BACKEND=tensorflow" in line
    assert b"numpy" in line.partition(b" Received: ")[2]


def test_the_program_itself(saved):
    done = run_program(*PROGRAM, "verify", saved, "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["tasks"]) == ["one", "two", "three"]
