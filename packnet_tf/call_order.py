"""How often Keras goes over the calls of a model before each is made.

It makes all layers first. Then it goes over them, in their order, and makes
those calls of each whose tensors are there; and again, until none is left. A
loop may keep it at that for ever, and a chain in reverse takes as many rounds
as it has layers. What it will do is told here from names and numbers alone, in
time that grows with the configuration.
"""

import inspect
import itertools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras

from packnet_tf.config_limits import brief
from packnet_tf.config_limits import refusal

# What Keras makes a graph of layers from.
_GRAPH = frozenset({"input_layers", "layers", "output_layers"})
_SHARED = "shared_object_id"
_VALUES = 16  # Of a call of one tensor; a larger one counts as several.


class Graphs:
    """The Functional models of a configuration."""

    def __init__(self) -> None:
        self._graphs: list[Sequence[Any]] = []
        self._inputs: set[int] = set()  # By the `id` of the configuration.
        self._shared: dict[int, bool] = {}

    def add_object(self, found: Any, config: dict[str, Any]) -> None:
        """Notes what Keras makes an object of.

        Args:
            found: The class of it, or a function.
            config: What Keras would make it from.

        Raises:
            FileError: If it is an input and something else at once.
        """
        is_input = inspect.isclass(found) and issubclass(
            found, keras.layers.InputLayer
        )
        if is_input:
            self._inputs.add(id(config))
        if _SHARED in config:
            # Keras makes one object of all that have the same number.
            number = config[_SHARED]
            if (
                type(number) is not int
                or self._shared.setdefault(number, is_input) != is_input
            ):
                raise refusal(
                    "makes one object of things that differ", brief(config)
                )

    def add(self, config: dict[str, Any]) -> None:
        """Notes a Functional model, if it is one.

        Args:
            config: Any object of the configuration.
        """
        layers = config.get("layers")
        if _GRAPH <= config.keys() and isinstance(layers, (list, tuple)):
            self._graphs.append(layers)

    def count_attempts(self) -> int:
        """Counts how often Keras tries to make a call.

        Returns:
            The most attempts that all models take together, to be asked for
            when all objects are noted; an attempt at a large call counts as
            several.

        Raises:
            FileError: If there are calls that can never be made.
        """
        return sum(
            _count_attempts(layers, lambda layer: id(layer) in self._inputs)
            for layers in self._graphs
        )


def _count_attempts(
    layers: Sequence[Any], is_input: Callable[[Any], bool]
) -> int:
    """Counts the attempts for one model."""
    places = _places(layers)
    starts, sizes, largest = [0], [], 0
    wanted: list[list[Any]] = []
    for layer in layers:
        calls = layer.get("inbound_nodes")
        if not isinstance(calls, (list, tuple)):
            raise refusal("has a layer without calls", brief(layer["name"]))
        most = 0
        for call in calls:
            takes, size = _read(call)
            wanted.append(takes)
            sizes.append(1 + size // _VALUES)
            most = max(most, sizes[-1])
        starts.append(len(sizes))
        largest += most
    before: list[list[int]] = []
    for takes in wanted:
        found = [
            _find(tensor, layers, places, starts, is_input) for tensor in takes
        ]
        before.append([call for call in found if call is not None])
    # In each round at most one attempt at each layer fails. It may fail for
    # another reason than is known here, but that makes no more rounds.
    return sum(sizes) + _count_rounds(before, starts) * largest


def _places(layers: Sequence[Any]) -> dict[str, int]:
    """Returns the place of each layer by its name."""
    places: dict[str, int] = {}
    shared: set[int] = set()
    for layer in layers:
        if not isinstance(layer, dict) or "class_name" not in layer:
            raise refusal("has a layer of no class", brief(layer))
        name = layer.get("name")
        if not isinstance(name, str):
            raise refusal("has a layer without a name", brief(name))
        if name in places or layer.get(_SHARED) in shared:
            raise refusal("has a layer twice", brief(name))
        places[name] = len(places)
        if _SHARED in layer:
            shared.add(layer[_SHARED])
    return places


def _read(call: dict[str, Any]) -> tuple[list[Any], int]:
    """Returns what a call takes, and how many values describe it."""
    takes: list[Any] = []
    size, left = 0, [(call.get("args"), True), (call.get("kwargs"), True)]
    while left:
        value, is_argument = left.pop()
        size += 1
        if isinstance(value, (list, tuple)):
            left.extend((each, is_argument) for each in value)
        elif isinstance(value, dict):
            if "class_name" in value and "config" in value:
                inner = value["config"]
                if (
                    is_argument
                    and value["class_name"] == "__keras_tensor__"
                    and isinstance(inner, dict)
                    and inner.get("keras_history") is not None
                ):
                    takes.append(inner["keras_history"])
                is_argument = False  # Keras looks into no other object.
            left.extend((each, is_argument) for each in value.values())
    return takes, size


def _find(
    tensor: Any,
    layers: Sequence[Any],
    places: dict[str, int],
    starts: list[int],
    is_input: Callable[[Any], bool],
) -> int | None:
    """Returns the call that gives a tensor, `None` if it is there at once."""
    if isinstance(tensor, (list, tuple)) and len(tensor) == 3:
        name, number, _ = tensor
        place = places.get(name) if isinstance(name, str) else None
        if place is not None and type(number) is int and number >= 0:
            number -= is_input(layers[place])
            if number < 0:
                return None
            if number < starts[place + 1] - starts[place]:
                return starts[place] + number
    raise refusal("calls a layer on a tensor that nothing gives", brief(tensor))


def _count_rounds(before: list[list[int]], starts: list[int]) -> int:
    """Counts the rounds until each call is made.

    Args:
        before: Which calls must be made before each, by their numbers.
        starts: The number of the first call of each layer, and of no other.

    Returns:
        The number of rounds.
    """
    place_of = [
        place
        for place, (start, end) in enumerate(itertools.pairwise(starts))
        for _ in range(start, end)
    ]
    after: list[list[int]] = [[] for _ in before]
    missing = [0] * len(before)
    for call, calls in enumerate(before):
        if call and place_of[call] == place_of[call - 1]:
            calls = [*calls, call - 1]  # A layer is called in order.
        for each in calls:
            after[each].append(call)
        missing[call] = len(calls)
    rounds = [1] * len(before)
    left = [call for call, count in enumerate(missing) if not count]
    done = 0
    while left:
        call = left.pop()
        done += 1
        for each in after[call]:
            later = place_of[each] < place_of[call]
            rounds[each] = max(rounds[each], rounds[call] + later)
            missing[each] -= 1
            if not missing[each]:
                left.append(each)
    if done < len(before):
        raise refusal(
            "calls layers in a loop, each on what the next gives",
            f"{len(before) - done} such calls of {len(before)}",
        )
    return max(rounds, default=0)
