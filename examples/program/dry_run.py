"""What a run would do, and about how long it would take."""

import time
from typing import Any

from loading.datasets import Dataset
from methods import experiment
from methods import packing
from methods.plain_network import PlainNetwork
from program import options
from reporting import report

import packnet_tf
from packnet_tf import sequence

_STEPS = 5
# Of a step of training: forwards only, or with a second network forwards.
_FORWARDS_ONLY = 0.4
_IMITATING = 1.35


def describe(
    setting: experiment.Experiment,
    methods: list[str],
    repeats: int,
    wrap: dict[str, Any],
) -> str:
    """Says what would be done: tasks, shares, sizes, steps, time.

    Builds the network, and trains it for a few steps to time them.

    Args:
        setting: The experiment.
        methods: Names of the methods.
        repeats: How often they are run.
        wrap: Arguments for `packnet_tf.wrap`.

    Returns:
        Several lines.
    """
    model, plans = packing.begin(setting, wrap)
    planned = options.plan(
        model,
        {plan.name: plan.units for plan in plans if plan.units},
        {
            plan.name: plan.head.count_params()
            for plan in plans
            if plan.head is not None
        },
        setting.keep,
    )
    capacity = planned.capacity
    size = 5 * capacity.total + 4 * (capacity.unpacked + sum(capacity.heads))
    steps = {plan.name: _steps(plan) for plan in plans}
    took = _time_step(setting)
    total = sum(
        steps[plan.name] * took * _cost(method, plan.name, setting)
        for method in methods
        for plan in plans
        if method == packing.NAME or plan in setting.plans
    )
    lines = [
        report.plan_to_text(_rows(setting, planned, steps)),
        "",
        f"The network has {capacity.total:,} packed weights and "
        f"{capacity.unpacked:,} others; with the tasks' classifiers its file "
        f"has about {size / 1e6:,.1f} MB, and {planned.bytes / 1e6:,.1f} MB or "
        "less as a pack file.",
        f"A step takes about {took:.3f} seconds here. {', '.join(methods)}: "
        f"about {_say(total * repeats)} for {repeats} "
        f"{'repeat' if repeats == 1 else 'repeats'}, without testing.",
    ]
    return "\n".join(lines)


def _rows(
    setting: experiment.Experiment,
    planned: packnet_tf.Plan,
    steps: dict[str, int],
) -> list[dict[str, str]]:
    found = {data.name: (data, data.num_classes) for data in setting.data}
    if setting.keep:
        classes = setting.network.build_whole().output_shape[-1]
        found[setting.keep.name] = setting.keep.train, classes
    rows = []
    for name, sparsity in planned.sparsities.items():
        data, classes = found[name]
        rows.append(
            {
                "task": name,
                "classes": str(classes),
                **dict(zip(("train", "validation", "test"), _sizes(data))),
                "sparsity": f"{sparsity:.4g}",
                "keeps of all": f"{100 * planned.capacity.share(name):.2f} %",
                "steps": f"{steps[name]:,}",
            }
        )
    return rows


def _sizes(data: Dataset | None) -> list[str]:
    if data is None:
        return ["-"] * 3
    return [f"{len(part):,}" for part in (data.train, data.val, data.test)]


def _steps(plan: sequence.TaskPlan) -> int:
    pruned = plan.sparsity or plan.schedule is not None
    epochs = plan.warmup_epochs + plan.epochs
    return (epochs + (plan.retrain_epochs if pruned else 0)) * (
        plan.steps_per_epoch
    )


def _cost(method: str, task: str, setting: experiment.Experiment) -> float:
    """Returns the cost of a step of a task, in steps of plain training."""
    keep = setting.keep
    if method == "classifier":
        return _FORWARDS_ONLY
    if keep is not None and task == keep.name:
        return _IMITATING if keep.train is None else 1.0
    imitates = method == "lwf" or (method == "joint" and keep is not None)
    return _IMITATING if imitates else 1.0


def _time_step(setting: experiment.Experiment) -> float:
    """Returns the seconds of a training step of the first task."""
    plan = setting.plans[0]
    network = PlainNetwork(setting.network)
    network.add_head(plan.name, plan.units)
    model = network.model([plan.name])
    setting.compile(model, "train", 1, _STEPS)
    batches = plan.train(0)

    def fit(steps: int) -> float:
        started = time.perf_counter()
        # The pipeline shuffles.
        model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
        return time.perf_counter() - started

    fit(2)
    once, twice = fit(_STEPS), fit(2 * _STEPS)
    # The difference leaves out what an epoch takes to begin.
    return max(twice - once, twice / 4) / _STEPS


def _say(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
