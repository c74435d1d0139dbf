"""An optimizer carried over to other variables than it was built for.

Keras builds an optimizer once, for one list of variables. The next task keeps
the backbone's variables and brings those of a new head. So the optimizer is
built again, and what it knows of a variable is copied from before.

Keras' optimizers keep what they know of their variables in lists, one item
per variable, or in dicts by variable. What is kept otherwise is refused.
"""

import contextlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras

from packnet_tf import optimizers
from packnet_tf import update
from packnet_tf.errors import ArgumentError

_OWN = ("_trainable_variables", "_trainable_variables_indices")


def is_of_others(
    optimizer: keras.optimizers.Optimizer | None,
    variables: Sequence[keras.Variable],
) -> bool:
    """Tells whether an optimizer has state that can be carried over.

    Args:
        optimizer: The optimizer, or `None`.
        variables: The variables that train now.

    Returns:
        `True` if it was built for other variables, but for some of these.
    """
    wanted = {id(variable) for variable in variables}
    parts = optimizers.parts(optimizer)
    known = {
        id(variable)
        for part in parts
        if part.built
        for variable in part._trainable_variables
    }
    return bool(known & wanted) and (known != wanted or not optimizer.built)


@contextlib.contextmanager
def carried(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> Iterator[None]:
    """Builds an optimizer again and copies what it knows from before.

    It stays the same object. Slots of a variable that it was built for keep
    their values, as do the counts of its steps and its scales; a new variable
    starts with fresh ones, its moving average at its value. Slots of variables
    that are gone are dropped.

    Args:
        optimizer: The optimizer, built for some of the variables.
        variables: The variables that train now.

    Yields:
        Once it is done. If the body raises, all is undone.

    Raises:
        ArgumentError: If the optimizer keeps state that belongs to neither
            itself nor one of its variables.
    """
    states = [_State(part) for part in optimizers.parts(optimizer)]
    try:
        for state in states:
            state.clear()
        optimizer.build(list(variables))
        found = optimizers.parts(optimizer)
        if [id(part) for part in found] != [id(s.part) for s in states]:
            _refuse(optimizer, "it makes new optimizers for its variables")
        update.seed_averages(optimizer)
        for state in states:
            state.hand_on()
        yield
    except BaseException:
        for state in states:
            state.undo()
        raise
    for state in states:
        state.forget()


class _State:
    """What one optimizer held before it was built again.

    Args:
        part: The optimizer, without those it wraps.
    """

    def __init__(self, part: keras.optimizers.Optimizer) -> None:
        self.part = part
        self.built = part.built
        self.known = list(part._trainable_variables) if part.built else []
        self.tracked = list(part._variables)
        self.attributes = {
            name: value
            for name, value in vars(part).items()
            if not _is_internal(name)
        }

    def clear(self) -> None:
        """Makes the optimizer ready to be built again."""
        # Not by `setattr`, which would track the variables of the model.
        now = vars(self.part)
        for name, value in self.attributes.items():
            if name in _OWN or self._is_slots(name, value):
                now[name] = {} if _is_dict(value) else []
            elif isinstance(value, (dict, list)):
                # Building may fill it in place, which could not be undone.
                now[name] = dict(value) if _is_dict(value) else list(value)
        self.part.built = False

    def hand_on(self) -> None:
        """Copies the old values to where the same is kept now."""
        pairs = []
        handed = {id(variable) for variable in _variables_in(vars(self.part))}
        for name, old in self.attributes.items():
            if name in _OWN:
                continue
            new = getattr(self.part, name)
            if isinstance(old, keras.Variable):
                handed.add(id(old))
                pairs.extend([(new, old)] if new is not old else [])
            elif self._is_slots(name, old):
                handed.update(id(slot) for slot in _variables_in({name: old}))
                pairs.extend(self._pairs(old, new))
        if any(id(variable) not in handed for variable in self.tracked):
            _refuse(self.part, "it keeps state in a way unknown to Keras")
        for new, old in pairs:
            if tuple(new.shape) != tuple(old.shape):
                _refuse(self.part, "its state is not one value per variable")
        update.assign(
            [new for new, _ in pairs], [old.value for _, old in pairs]
        )

    def undo(self) -> None:
        """Puts the optimizer back as it was."""
        before = {id(variable) for variable in self.tracked}
        for variable in list(self.part._variables):
            if id(variable) not in before:
                self.part._untrack_variable(variable)
        now = vars(self.part)
        for name in [name for name in now if not _is_internal(name)]:
            del now[name]
        now.update(self.attributes)

    def forget(self) -> None:
        """Drops the variables that the optimizer no longer uses."""
        used = {id(variable) for variable in _variables_in(vars(self.part))}
        for variable in self.tracked:
            if id(variable) not in used:
                self.part._untrack_variable(variable)

    def _is_slots(self, name: str, value: Any) -> bool:
        """Tells whether a container holds one item per variable."""
        if name in _OWN or not self.built:
            return False
        if not isinstance(value, (dict, list, tuple)):
            return False
        if next(_variables_in({name: value}), None) is None:
            return False
        return isinstance(value, dict) or len(value) == len(self.known)

    def _pairs(
        self, old: Any, new: Any
    ) -> Iterator[tuple[keras.Variable, keras.Variable]]:
        if isinstance(old, dict):
            both = [(new.get(key), value) for key, value in old.items()]
        else:
            slots = {id(v): slot for v, slot in zip(self.known, old)}
            now = self.part._trainable_variables if new else ()
            both = [(slot, slots.get(id(v))) for v, slot in zip(now, new)]
        for slot, value in both:
            if slot is not None and value is not None:
                yield slot, value


def _variables_in(attributes: dict[str, Any]) -> Iterator[keras.Variable]:
    """Yields the variables that attributes hold, one container deep."""
    for name, value in attributes.items():
        if name in _OWN or _is_internal(name):
            continue
        items: Iterable[Any] = (value,)
        if isinstance(value, dict):
            items = value.values()
        elif isinstance(value, (list, tuple)):
            items = value
        yield from (item for item in items if isinstance(item, keras.Variable))


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_internal(name: str) -> bool:
    return name in ("_variables", "_tracker") or name.startswith("_self_")


def _refuse(optimizer: keras.optimizers.Optimizer, why: str) -> None:
    raise ArgumentError(
        "The optimizer was built for other variables, such as those of an "
        f"earlier task, and cannot be carried over: {why}. Compile with a new "
        f"one. Received: optimizer={optimizer.name!r}"
    )
