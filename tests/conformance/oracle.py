"""What must be true of a packed model, kept beside it in plain Python."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Known:
    """What the oracle knows of one task."""

    name: str
    units: int
    head: str
    stage: str = "TRAIN"
    sparsity: float = 0.0
    steps: int = 0
    fingerprint: str | None = None
    outputs: np.ndarray | None = None
    # What graphs and losses gave, by how they were computed.
    seen: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Oracle:
    """What must be true of a model."""

    owners: dict[str, np.ndarray]
    tasks: list[Known] = dataclasses.field(default_factory=list)
    active: str | None = None
    optimizer: str | None = None
    eager: bool = False

    @property
    def newest(self):
        return self.tasks[-1] if self.tasks else None

    @property
    def names(self):
        return [task.name for task in self.tasks]

    @property
    def may_train(self):
        return self.newest is not None and self.newest.stage != "FROZEN"

    @property
    def may_add(self):
        return not self.may_train

    @property
    def pools(self):
        """Counts what the newest task owned of each weight at its start."""
        number = len(self.tasks)
        return {
            key: int(((owner == 0) | (owner == number)).sum())
            for key, owner in self.owners.items()
        }

    def find(self, name):
        (task,) = [task for task in self.tasks if task.name == name]
        return task

    def claim(self, name, units, head):
        self.tasks.append(Known(name, units, head))
        self.active = name
        for owner in self.owners.values():
            owner[owner == 0] = len(self.tasks)

    def release(self, fraction, kernels):
        """Releases one by one, in the order that the contract fixes."""
        number = len(self.tasks)
        pools = self.pools
        for key, owner in self.owners.items():
            flat, kernel = owner.reshape(-1), kernels[key].reshape(-1)
            missing = round(fraction * pools[key]) - int((flat == 0).sum())
            ranked = sorted(
                np.flatnonzero(flat == number),
                key=lambda i: (np.isnan(kernel[i]), abs(kernel[i]), i),
            )
            flat[ranked[:missing]] = 0
        self.newest.stage, self.newest.sparsity = "RETRAIN", fraction

    def remove(self, first):
        """Removes tasks from a place on; returns how much they owned."""
        del self.tasks[first:]
        self.active = self.newest.name
        self.newest.steps = 0
        count = 0
        for owner in self.owners.values():
            count += int((owner > first).sum())
            owner[owner > first] = 0
        return count
