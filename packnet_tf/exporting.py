"""How tasks are taken out of a packed model, and exported."""

import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras

from packnet_tf import cloning
from packnet_tf import endpoints
from packnet_tf import export
from packnet_tf import files
from packnet_tf import saved_models
from packnet_tf.errors import ArgumentError
from packnet_tf.training import PackedTrainer


class PackedExporter(PackedTrainer):
    """The part of the packed model that makes plain models of its tasks."""

    def unwrap(self, task: str | None = None) -> keras.Model:
        """Makes a plain Keras model of one task.

        Args:
            task: Name of a task. Defaults to the active one.

        Returns:
            A Functional model of plain layers, on variables of its own, that
            holds this task's weights and zeros elsewhere.

        Raises:
            TaskError: If there is no such task.
            FingerprintError: If a frozen task has changed.
        """
        self._tasks.current("unwrap()")
        chosen = self._tasks.find(self._active if task is None else task)
        self.verify()
        return cloning.unpack(
            self.backbone,
            self.heads[chosen.name],
            chosen.number,
            f"{self.name}_{chosen.name}",
        )

    def export_task(
        self,
        name: str,
        path: "str | os.PathLike[str]",
        format: str | None = None,
        preprocessing: keras.layers.Layer | None = None,
        class_names: Sequence[str] | None = None,
        quantize: str | None = None,
        representative_data: Any = None,
        verbose: bool = False,
    ) -> None:
        """Exports one task as a plain model that needs no packnet_tf.

        Args:
            name: Name of a task.
            path: The file or folder to write.
            format: `"tf_saved_model"`, `"keras"` or `"litert"`. By default
                the suffix decides, in any case: `.keras` is a Keras file,
                `.tflite` a LiteRT file, and any other path the folder of a
                SavedModel. Keras itself loads a Keras file by that suffix
                alone, in lower case.
            preprocessing: A Keras layer or model whose outputs the backbone
                takes; what is exported takes its inputs. A model that
                declares them, by `keras.Input`, says their shape and dtype;
                of any other they are those of the backbone.
            class_names: Unique strings, as many as the head has outputs. What
                is exported then returns a dict: `"scores"`, which is what the
                head returns, and `"labels"`, strings of its shape without the
                last axis, the name of the highest. A LiteRT file also holds
                a file `labels.txt`, a name per line.
            quantize: `"float16"` or `"int8"`, of a LiteRT file. Inputs and
                outputs keep their dtypes.
            representative_data: For `"int8"`: examples of what the exported
                task takes, as arrays, or batches of such as a
                `tf.data.Dataset` or `keras.utils.PyDataset`, labels passed
                over. All are read; some hundred are enough.
            verbose: Whether Keras reports the SavedModel's signature.

        Raises:
            TaskError: If there is no such task.
            FingerprintError: If a frozen task has changed.
            ArgumentError: If the suffix is of another format, or another
                argument does not fit the task or the format.
            UnsupportedLayerError: If a Keras file cannot hold a layer of
                `preprocessing`.
            FileError: If it cannot be written there, or if the folder holds
                other things than a SavedModel.
        """
        head = self.heads[self._tasks.find(name).name]
        format = export.find_format(path, format)
        export.check_path(path)
        endpoint = endpoints.make(
            self.backbone, head, preprocessing, class_names
        )
        batches = export.check_options(
            format, endpoint, self.backbone.input, quantize, representative_data
        )
        plain = self.unwrap(name)
        export.write_task(
            plain, path, format, endpoint, quantize, batches, verbose
        )

    def export(
        self,
        filepath: "str | os.PathLike[str]",
        format: str = "tf_saved_model",
        preprocessing: Mapping[str, keras.layers.Layer] | None = None,
        class_names: Mapping[str, Sequence[str]] | None = None,
        keep: bool = True,
        verbose: bool = False,
    ) -> None:
        """Exports all tasks as one SavedModel with a signature per task.

        The weights are stored once. `serving_default` is the active task.

        Args:
            filepath: The folder to write.
            format: `"tf_saved_model"`; other formats hold one task, for which
                there is `export_task`.
            preprocessing: By the names of tasks, as for `export_task`. A task
                that is not named takes what the backbone takes.
            class_names: By the names of tasks, as for `export_task`.
            keep: Whether the loaded SavedModel keeps the weights of an older
                task, selected by its first call. It then costs no more to
                call than a plain model, and as much memory as the packed
                weights for each older task that was called. Without, they
                are selected in each call, and what converts a SavedModel, or
                makes a Keras layer of it, can read older tasks, too.
            verbose: Whether Keras reports the signatures.

        Raises:
            ArgumentError: If the format or the suffix is another, or what is
                said of a task does not fit it.
            TaskError: If a task is named that is none.
            StageError: If there is no task yet.
            FingerprintError: If a frozen task has changed.
            FileError: If it cannot be written there, or if the folder holds
                other things than a SavedModel.
        """
        if format != export.SAVED_MODEL:
            raise ArgumentError(
                "All tasks together are exported as a SavedModel. For another "
                "format export one task: `model.export_task(name, path)`. "
                f"Received: format={format!r}"
            )
        export.find_format(filepath, format)
        self._tasks.current("export()")
        around = self._endpoints(preprocessing, class_names)
        export.check_path(filepath)
        self.verify()
        with files.replacing(filepath, saved_models.FOLDER) as new:
            saved_models.write_tasks(
                self,
                self._packed(),
                {task.name: task.number for task in self._tasks},
                around,
                self._active,
                new,
                keep,
                verbose,
            )

    # Helpers.

    def _endpoints(
        self, preprocessing: Any, class_names: Any
    ) -> dict[str, endpoints.Endpoint]:
        """Checks what goes around each task."""
        given = {"preprocessing": preprocessing, "class_names": class_names}
        for argument, values in given.items():
            if not isinstance(values, Mapping | None):
                raise ArgumentError(
                    f"`{argument}` is a dict by the names of tasks, as each "
                    f"has its own. Received: {argument}={values!r}"
                )
            for name in values or {}:
                self._tasks.find(name)
        return {
            name: endpoints.make(
                self.backbone,
                self.heads[name],
                (preprocessing or {}).get(name),
                (class_names or {}).get(name),
            )
            for name in self.task_names
        }
