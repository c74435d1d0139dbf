"""How a packed model is saved and loaded."""

import os
from typing import Any

import keras

from packnet_tf import files
from packnet_tf import keras_file
from packnet_tf import ownership
from packnet_tf import variables
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError
from packnet_tf.errors import StageError
from packnet_tf.exporting import PackedExporter
from packnet_tf.tasks import Task

# With `zipped=False`.
_FOLDER = files.Folder(
    marks=("config.json", "metadata.json", "model.weights.h5"),
    others=("assets",),
)


class PackedSaver(PackedExporter):
    """The part of the packed model that is saved and loaded."""

    def save(
        self,
        filepath: "str | os.PathLike[str]",
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if zipped is not False and not str(filepath).endswith(".keras"):
            raise ArgumentError(
                "A packed model is saved as a Keras file. Let the path end in "
                f"`.keras`. Received: filepath={str(filepath)!r}"
            )
        if str(filepath).startswith("hf://"):
            self.verify()
            super().save(filepath, overwrite, zipped, **kwargs)
            return
        files.check_replaceable(filepath, _FOLDER)
        if not overwrite and os.path.lexists(filepath) and not _ask(filepath):
            return
        self.verify()
        with files.replacing(filepath, _FOLDER) as new:
            super().save(new, True, zipped, **kwargs)

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """Loads weights of this model, as in Keras, or none at all.

        A `.weights.h5` or `.keras` file may come from anyone: it is looked at
        before the HDF5 library reads it.

        Args:
            *args: As for `keras.Model.load_weights`.
            **kwargs: As for `keras.Model.load_weights`.

        Raises:
            FingerprintError: If a frozen task would change.
            StageError: If the weights belong to another stage of the model.
            ArgumentError: If Keras cannot load them into this model, as when
                they lack a task.
            FileError: If the file is there, but damaged.
        """
        path = args[0] if args else kwargs.get("filepath")
        if (
            isinstance(path, (str, os.PathLike))
            and os.path.exists(path)
            and not os.path.isdir(path)
        ):
            if str(path).endswith(".keras"):
                # Keras reads the weights of it, and no configuration.
                keras_file.check(path, safe_mode=False)
            elif str(path).endswith(".weights.h5"):
                keras_file.check_weights(path)
        optimizer = getattr(self, "optimizer", None)
        state = [*self.variables, *(optimizer.variables if optimizer else [])]
        before = [variable.numpy() for variable in state]
        unverified = self._unverified
        try:
            super().load_weights(*args, **kwargs)
            self._check_owners()
            self.verify()
        except BaseException as error:
            for variable, value in zip(state, before):
                variable.assign(value)
            self._unverified = unverified
            if not isinstance(error, ValueError) or isinstance(
                error, PackNetError
            ):
                raise
            raise ArgumentError(
                "The weights cannot be loaded into this model, whose tasks "
                f"are {self.task_names}. Load the whole model with "
                f"`packnet_tf.load_model` instead. {error} "
                f"Received: {[*args, *kwargs.values()]}"
            ) from error

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: a packed model holds the exact weights of its tasks.

        Args:
            *args: Anything.
            **kwargs: Anything.

        Raises:
            StageError: Always.
        """
        raise StageError(
            "Quantizing would change frozen tasks. Take one task out and "
            "quantize that: `model.unwrap(task).quantize(...)`. "
            f"Received: a packed model with tasks {self.task_names}"
        )

    def get_config(self) -> dict[str, Any]:
        if len(self._tasks):
            self._newest("get_config()")
        return {
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "heads": {
                name: keras.saving.serialize_keras_object(self.heads[name])
                for name in self.task_names
            },
            "tasks": [task.to_config() for task in self._tasks],
            "active": self._active,
            "head_only": self._head_only,
            "left_out": dict(self._left_out),
            "empty_pools": sorted(self._empty_pools),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "PackedSaver":
        def load(part: dict[str, Any]) -> Any:
            return keras.saving.deserialize_keras_object(
                part, custom_objects=custom_objects
            )

        model = cls(
            load(config["backbone"]),
            {name: load(head) for name, head in config["heads"].items()},
            [Task.from_config(task) for task in config["tasks"]],
            config["left_out"],
            config["empty_pools"],
            name=config["name"],
            dtype=load(config["dtype"]),
        )
        if config["active"] is not None:
            model._active = model._tasks.find(config["active"]).name
        # Before it is compiled: the optimizer is built for what trains.
        model._head_only = bool(config.get("head_only", False))
        return model

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Does nothing: the model is built when it is made."""

    def save_own_variables(self, store: Any) -> None:
        for index, variable in enumerate(self._own_state()):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        state = self._own_state()
        if len(store.keys()) != len(state):
            raise ArgumentError(
                "The file does not belong to this model. "
                f"Received: {len(store.keys())} variables of its own, "
                f"expected {len(state)}"
            )
        for index, variable in enumerate(state):
            variable.assign(store[str(index)])
        # The layers are loaded after this; their fingerprints are checked at
        # the first use, whoever loads the file.
        self._unverified = True
        self._views.clear()

    # Helpers.

    def _own_state(self) -> list[keras.Variable]:
        """Lists what is saved besides the layers.

        Keras saves no random state. With it, a training that goes on after
        loading draws the same dropout as one that was never interrupted.
        """
        seeds = [v for v in self.variables if variables.is_seed(v)]
        return [self.steps, self.pruned, *seeds]

    def _check_owners(self) -> None:
        """Checks that the owner maps are those of the tasks there are.

        A task that is not frozen has released its exact share of each packed
        weight, or of all of them together.
        """
        tasks = len(self._tasks)
        sparsity = None
        if tasks and self._newest("load_weights()").record is None:
            sparsity = self._newest("load_weights()").sparsity
        frees, pools, wrong = [], [], []
        for entry in self._packed():
            owner = variables.view(entry.owner)
            free = ownership.count(owner, ownership.FREE)
            pool = ownership.pool_size(owner, tasks)
            expected = free if sparsity is None else round(sparsity * pool)
            if owner.max(initial=0) > tasks:
                raise _misfit(
                    f"their owner map of '{entry.key}' does not fit its "
                    f"{tasks} tasks",
                    f"owner {owner.max()}, expected {tasks} at most",
                )
            if free != expected:
                wrong.append((entry.key, free, expected))
            frees.append(free)
            pools.append(pool)
        if wrong and sum(frees) != round(sparsity * sum(pools)):
            key, free, expected = wrong[0]
            raise _misfit(
                f"their owner map of '{key}' does not fit its {tasks} tasks, "
                "nor do all of them together",
                f"{free} free entries, expected {expected}; {sum(frees)} in "
                f"all, expected {round(sparsity * sum(pools))}",
            )


def _ask(filepath: "str | os.PathLike[str]") -> bool:
    """Asks whether what is there may be replaced, as Keras does."""
    question = f"There is '{filepath}' already. Replace it? [y/n] "
    while True:
        answer = input(question).strip().lower()
        if answer in ("y", "n"):
            return answer == "y"
        question = "Answer y, to replace it, or n, to keep it: "


def _misfit(what: str, received: str) -> StageError:
    return StageError(
        f"The weights are not of this model as it stands now: {what}. Load "
        "the whole model with `packnet_tf.load_model` instead. "
        f"Received: {received}"
    )
