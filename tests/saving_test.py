import io
import json
import pathlib
import sys
import zipfile

import keras
import numpy as np
import pytest
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model
from helpers import eagerly

import packnet_tf
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError

L = keras.layers


def to_train(model, x, y, finish):
    with eagerly(model):
        model.fit(x, y, batch_size=8, verbose=0)


def to_retrain(model, x, y, finish):
    to_train(model, x, y, finish)
    model.prune(0.5)
    to_train(model, x, y, finish)


def to_frozen(model, x, y, finish):
    finish(model, x, y)


def to_second_train(model, x, y, finish):
    finish(model, x, y)
    model.add_task("two", units=6)
    to_train(model, x, y, finish)


def to_second_frozen(model, x, y, finish):
    finish(model, x, y)
    model.add_task("two", units=6)
    finish(model, x, y)
    model.set_task("one")


def without_tuples(config):
    """Returns a config as it is after JSON, which knows no tuples."""
    return json.loads(json.dumps(config, default=list))


STAGES = {
    "train": to_train,
    "retrain": to_retrain,
    "frozen": to_frozen,
    "second_train": to_second_train,
    "second_frozen": to_second_frozen,
}


@pytest.mark.parametrize("stage", STAGES)
def test_save_and_load_in_every_stage(
    stage, packed, images, finish_task, tmp_path
):
    x, y = images
    STAGES[stage](packed, x, y, finish_task)
    packed.save(tmp_path / "packed.keras")
    loaded = keras.saving.load_model(tmp_path / "packed.keras")
    assert isinstance(loaded, packnet_tf.PackNetModel)
    assert without_tuples(loaded.get_config()) == without_tuples(
        packed.get_config()
    )
    assert loaded.stage is packed.stage
    assert loaded.task == packed.task
    assert_same_values(all_values(packed), all_values(loaded))
    assert_same_values(
        [variable.numpy() for variable in packed.optimizer.variables],
        [variable.numpy() for variable in loaded.optimizer.variables],
    )
    trainable = [v.path for v in loaded.trainable_variables]
    assert len(trainable) == len(packed.trainable_variables)
    for task in packed.task_names:
        np.testing.assert_array_equal(
            packed.predict(x, verbose=0, task=task),
            loaded.predict(x, verbose=0, task=task),
        )
    assert loaded.verify() == packed.verify()


@pytest.mark.parametrize("stage", ["train", "retrain", "second_train"])
def test_training_goes_on_where_it_stopped(
    stage, images, network, finish_task, tmp_path
):
    x, y = images
    packed = packnet_tf.wrap(network(), task="one")
    compile_model(packed, keras.optimizers.AdamW(0.01, weight_decay=0.1))
    STAGES[stage](packed, x, y, finish_task)
    packed.save(tmp_path / "packed.keras")
    loaded = keras.saving.load_model(tmp_path / "packed.keras")
    for model in (packed, loaded):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        model.prune(0.75)
        model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert_same_values(all_values(packed), all_values(loaded))
    assert packed.freeze_task() == loaded.freeze_task()


@pytest.mark.parametrize(
    ("by", "wrapped"), [("name", True), ("variable", False)]
)
def test_what_does_not_decay_does_not_after_loading(
    wrapped, by, packed, images, tmp_path
):
    x, y = images
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    excluded = {"var_names": ["bias"]}
    if by == "variable":
        excluded = {"var_list": [packed.trainable_variables[0]]}
    optimizer.exclude_from_weight_decay(**excluded)
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    compile_model(packed, optimizer)
    packed.fit(x, y, verbose=0)
    packed.save(tmp_path / "packed.keras")
    loaded = keras.saving.load_model(tmp_path / "packed.keras")
    for model in (packed, loaded):
        model.fit(x, y, shuffle=False, epochs=2, verbose=0)
    assert_same_values(all_values(packed), all_values(loaded))
    for model in (packed, loaded):
        model.prune(0.5)
        model.freeze_task()
        keras.utils.set_random_seed(1)
        model.add_task("two", units=4)
        model.fit(x, y, shuffle=False, epochs=2, verbose=0)
    assert_same_values(all_values(packed), all_values(loaded))


@pytest.mark.parametrize("auto_scale_loss", [False, True])
def test_loss_scaling_is_as_it_was_after_loading(
    auto_scale_loss, images, network, tmp_path
):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        packed = packnet_tf.wrap(network(), task="one")
        compile_model(packed, auto_scale_loss=auto_scale_loss)
    finally:
        keras.config.set_dtype_policy("float32")
    packed.fit(*images, verbose=0)
    packed.save(tmp_path / "packed.keras")
    loaded = keras.saving.load_model(tmp_path / "packed.keras")
    assert type(loaded.optimizer) is type(packed.optimizer)
    assert_same_values(
        [variable.numpy() for variable in packed.optimizer.variables],
        [variable.numpy() for variable in loaded.optimizer.variables],
    )


def test_the_next_task_starts_afresh_after_loading(
    packed, images, finish_task, tmp_path
):
    compile_model(packed, keras.optimizers.Adam(0.01))
    packed.fit(*images, verbose=0)
    packed.optimizer.learning_rate = 1e-5
    packed.prune(0.5)
    packed.save(tmp_path / "packed.keras")
    loaded = keras.saving.load_model(tmp_path / "packed.keras")
    assert float(loaded.optimizer.learning_rate) == pytest.approx(1e-5)
    loaded.freeze_task()
    loaded.add_task("two", units=3)
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.01)
    assert int(loaded.optimizer.iterations) == 0


def test_more_tasks_after_loading_keep_old_ones_exact(
    packed, images, finish_task, tmp_path
):
    x, y = images
    finish_task(packed, x, y)
    before = packed.predict(x, verbose=0)
    for name in ("two", "three"):
        packed.save(tmp_path / "packed.keras")
        packed = keras.saving.load_model(tmp_path / "packed.keras")
        packed.add_task(name, units=4)
        finish_task(packed, x + 2.0, y)
        np.testing.assert_array_equal(
            before, packed.predict(x, verbose=0, task="one")
        )
    packed.verify()


def test_nested_and_shared_layers_survive(images, finish_task, tmp_path):
    shared = L.Dense(6, name="shared")
    within = L.Dense(6, name="within")
    inner = keras.Sequential(
        [keras.Input((6,)), within, L.Dense(6, name="inner"), within, L.ReLU()]
    )
    inputs = keras.Input((8, 8, 1))
    y = shared(L.Dense(6)(L.Flatten()(inputs)))
    y = inner(shared(inner(y)))
    model = packnet_tf.wrap(
        keras.Model(inputs, L.Dense(4, "softmax")(y)), task="one"
    )
    compile_model(model)
    x, labels = images
    finish_task(model, x, labels)
    model.add_task("two", units=4)
    finish_task(model, x, labels)
    model.save(tmp_path / "packed.keras")
    loaded = keras.saving.load_model(tmp_path / "packed.keras")
    assert loaded.verify() == model.verify()
    assert len(loaded.variables) == len(model.variables)
    for task in ("one", "two"):
        np.testing.assert_array_equal(
            model.predict(x, verbose=0, task=task),
            loaded.predict(x, verbose=0, task=task),
        )


def test_mixed_precision_survives(images, network, finish_task, tmp_path):
    x, y = images
    keras.config.set_dtype_policy("mixed_float16")
    try:
        packed = packnet_tf.wrap(network(), task="one")
        compile_model(packed)
        packed.fit(x, y, batch_size=8, verbose=0)
        packed.save(tmp_path / "packed.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "packed.keras")
    assert loaded.dtype_policy.name == "mixed_float16"
    np.testing.assert_array_equal(
        packed.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )
    assert_same_values(
        [variable.numpy() for variable in packed.optimizer.variables],
        [variable.numpy() for variable in loaded.optimizer.variables],
    )


def test_an_uncompiled_model_survives(network, images, tmp_path):
    packed = packnet_tf.wrap(network(classes=None))
    packed.save(tmp_path / "packed.keras")
    loaded = keras.saving.load_model(tmp_path / "packed.keras")
    assert not loaded.compiled
    assert loaded.task is None
    np.testing.assert_array_equal(packed(images[0]), loaded(images[0]))


def tamper(path: pathlib.Path, target: pathlib.Path) -> None:
    """Rewrites a Keras file with another recorded digest of one variable."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                record = config["config"]["tasks"][0]["record"]
                record["backbone"]["dense/kernel"] = "0" * 64
                data = json.dumps(config).encode()
            new.writestr(name, data)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, x: model(x),
        lambda model, x: model.predict(x, verbose=0),
        lambda model, x: model.add_task("two", units=2),
        lambda model, x: model.unwrap("one"),
        lambda model, x: model.save("never_written.keras"),
    ],
)
def test_a_damaged_file_is_refused_at_its_first_use(
    use, packed, images, finish_task, tmp_path
):
    finish_task(packed, *images)
    packed.save(tmp_path / "packed.keras")
    tamper(tmp_path / "packed.keras", tmp_path / "damaged.keras")
    loaded = keras.saving.load_model(tmp_path / "damaged.keras")
    for _ in range(2):
        with pytest.raises(FingerprintError, match="dense/kernel"):
            use(loaded, images[0])
    assert not pathlib.Path("never_written.keras").exists()


def test_load_model_checks_at_once(packed, images, finish_task, tmp_path):
    finish_task(packed, *images)
    packed.save(tmp_path / "packed.keras")
    loaded = packnet_tf.load_model(tmp_path / "packed.keras")
    assert loaded.verify() == packed.verify()
    tamper(tmp_path / "packed.keras", tmp_path / "damaged.keras")
    with pytest.raises(FingerprintError, match="dense/kernel"):
        packnet_tf.load_model(tmp_path / "damaged.keras")


def test_load_model_refuses_another_model(network, tmp_path):
    network().save(tmp_path / "plain.keras")
    with pytest.raises(FileError, match="Received:"):
        packnet_tf.load_model(tmp_path / "plain.keras")
    with pytest.raises(FileError, match="Received:"):
        packnet_tf.load_model(tmp_path / "nothing.keras")
    (tmp_path / "garbage.keras").write_bytes(b"garbage")
    with pytest.raises(FileError, match="Received:"):
        packnet_tf.load_model(tmp_path / "garbage.keras")


def test_weights_of_another_run_are_refused(
    packed, images, finish_task, tmp_path
):
    x, y = images
    finish_task(packed, x, y)
    packed.save_weights(tmp_path / "one.weights.h5")
    packed.load_weights(tmp_path / "one.weights.h5")
    packed.predict(x, verbose=0)
    kernel = packed.backbone.get_layer("dense").layer.kernel
    kernel.assign(kernel * 2.0)
    packed.save_weights(tmp_path / "other.weights.h5")
    kernel.assign(kernel / 2.0)
    before = all_values(packed)
    with pytest.raises(FingerprintError, match="dense/kernel"):
        packed.load_weights(tmp_path / "other.weights.h5")
    assert_same_values(before, all_values(packed))
    packed.verify()


def test_weights_that_are_refused_leave_the_optimizer_alone(
    packed, images, finish_task, tmp_path
):
    finish_task(packed, *images)
    packed.add_task("two", units=4)
    packed.fit(*images, batch_size=8, verbose=0)
    bias = packed.backbone.get_layer("dense").layer.bias
    value = bias.numpy()
    bias.assign(value + 1.0)
    packed.save_weights(tmp_path / "other.weights.h5")
    bias.assign(value)
    packed.fit(*images, batch_size=8, verbose=0)
    before = [v.numpy() for v in packed.optimizer.variables]
    with pytest.raises(FingerprintError, match="dense/bias"):
        packed.load_weights(tmp_path / "other.weights.h5")
    assert_same_values(before, [v.numpy() for v in packed.optimizer.variables])


def test_an_active_task_that_is_none_is_refused(packed):
    config = packed.get_config()
    config["active"] = "nine"
    with pytest.raises(packnet_tf.errors.TaskError, match="no such task"):
        packnet_tf.PackNetModel.from_config(config)


def test_save_replaces_all_or_nothing(packed, images, tmp_path, monkeypatch):
    path = tmp_path / "packed.keras"
    packed.save(path)
    before = path.read_bytes()

    def run_out(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", run_out)
    with pytest.raises(OSError, match="No space left"):
        packed.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_keeps_a_folder_of_other_things(packed, tmp_path):
    (tmp_path / "mine").mkdir()
    packed.save(tmp_path / "mine", zipped=False)  # An empty folder may go.
    packed.save(tmp_path / "mine", zipped=False)
    (tmp_path / "mine" / "config.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileError, match="Received: path="):
        packed.save(tmp_path / "mine", zipped=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_save_keeps_a_folder_with_one_thing_more(packed, tmp_path):
    packed.save(tmp_path / "app", zipped=False)
    (tmp_path / "app" / "thesis.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileError, match=r"which has 'thesis\.txt'"):
        packed.save(tmp_path / "app", zipped=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_save_keeps_a_folder_that_looks_alike(packed, tmp_path):
    (tmp_path / "app" / "assets").mkdir(parents=True)
    (tmp_path / "app" / "config.json").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileError, match=r"has no file 'metadata\.json'"):
        packed.save(tmp_path / "app", zipped=False)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "path",
    [
        "gs://bucket/model.keras",
        pathlib.Path("gs://bucket/model.keras"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_save_is_to_local_paths(packed, path, overwrite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="local path"):
        packed.save(path, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []


def answer(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_save_asks_before_it_replaces(packed, tmp_path, monkeypatch, capsys):
    path = tmp_path / "packed.keras"
    answer(monkeypatch, "")
    packed.save(path, overwrite=False)  # Nothing is there to ask about.
    assert capsys.readouterr().out == ""
    first = path.read_bytes()
    packed.steps.assign(7)
    answer(monkeypatch, "perhaps\n N \n")
    packed.save(path, overwrite=False)
    assert str(path) in capsys.readouterr().out
    assert path.read_bytes() == first
    answer(monkeypatch, "Y\n")
    packed.save(path, overwrite=False)
    assert packnet_tf.load_model(path).steps.numpy() == 7
    answer(monkeypatch, "")
    with pytest.raises(EOFError):
        packed.save(path, overwrite=False)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [False, True])
def test_save_is_all_or_nothing_if_it_asks(
    packed, there, tmp_path, monkeypatch
):
    path = tmp_path / "packed.keras"
    if there:
        path.write_bytes(b"old")

    def run_out(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", run_out)
    answer(monkeypatch, "y\n")
    with pytest.raises(FileError, match="No space left"):
        packed.save(path, overwrite=False)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"] * there


def test_save_refuses_a_damaged_model(packed, images, finish_task, tmp_path):
    finish_task(packed, *images)
    bias = packed.backbone.get_layer("dense").layer.bias
    bias.assign(bias + 1.0)
    with pytest.raises(FingerprintError, match="dense/bias"):
        packed.save(tmp_path / "packed.keras")
    assert list(tmp_path.iterdir()) == []
