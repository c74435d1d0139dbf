"""Says in sentences what a run shows."""

import dataclasses
from typing import Any

from reporting import amounts
from reporting import outcomes
from reporting import transfer
from reporting.outcomes import PACKED


def summarize(results: dict[str, Any]) -> list[str]:
    """Says in sentences what the tables show.

    Args:
        results: What `results.json` holds.

    Returns:
        Lines of text.
    """
    lines = _tell_changes(results)
    repeats = [repeat["name"] for repeat in results["repeats"]]
    if len(repeats) > 1:
        lines.append(
            f"Mean ± sample standard deviation over {len(repeats)} repeats: "
            f"{', '.join(repeats)}."
        )
    for method in outcomes.methods(results):
        lines += _tell_kept(method, outcomes.entries(results, method))
    lines += _tell_sizes(results)
    if outcomes.compares_methods(results):
        lines.append(
            "In points, mean over tasks, 0 is exactly none. Forgetting: the "
            "best accuracy before the end minus that at the end. Backward: at "
            "the end minus right after learning. Forward: right after learning "
            "minus that of an individual network."
        )
    lines.append(f"Training took {results['seconds']:.0f} seconds.")
    return lines


def _tell_changes(results: dict[str, Any]) -> list[str]:
    start = "Accuracy on the test part."
    if not outcomes.entries(results, PACKED):
        return [start]
    changed, unknown = [], []
    for repeat in results["repeats"]:
        if PACKED not in repeat["methods"]:
            continue
        found = transfer.changes(repeat["methods"][PACKED]["matrix"])
        for task, change in zip(repeat["order"], found):
            if change is not False:
                named = f"{task} ({repeat['name']})"
                (changed if change else unknown).append(named)
    lines = []
    if changed:
        lines += [
            f"{start} A TASK CHANGED AFTER IT WAS LEARNED.",
            f"Changed: {', '.join(changed)}.",
        ]
    elif not unknown:
        lines.append(f"{start} No task changed after it was learned.")
    else:
        lines.append(start)
    if unknown:
        lines.append(
            "Not known whether it changed after it was learned: "
            f"{', '.join(unknown)}."
        )
    return lines


def _tell_kept(method: str, entries: list[dict[str, Any]]) -> list[str]:
    kept = [entry["kept"] for entry in entries if entry.get("kept")]
    if not kept:
        return []

    def over_repeats(key: str) -> str:
        return amounts.percent(
            transfer.spread(found.get(key) for found in kept)
        )

    how = f"with {method}"
    sparsity = transfer.spread(found.get("sparsity") for found in kept)
    if sparsity is not None:
        share = amounts.percent(
            dataclasses.replace(sparsity, mean=1 - sparsity.mean)
        )
        how = f"kept as the first task with {share} of the packed weights"
    lines = [
        f"{kept[0]['name']}, {how}, chooses the same class as the network as "
        f"it was for {over_repeats('agreement')} of the tasks' test images."
    ]
    if any("accuracy" in found for found in kept):
        lines.append(
            f"On labelled images of its own: {over_repeats('accuracy')}, where "
            f"the network as it was has {over_repeats('accuracy_before')}."
        )
    return lines


def _tell_sizes(results: dict[str, Any]) -> list[str]:
    packed = transfer.spread(
        entry.get("bytes") for entry in outcomes.entries(results, PACKED)
    )
    if packed is None:
        return []
    separate = transfer.spread(
        entry.get("bytes")
        for entry in outcomes.entries(results, transfer.INDIVIDUAL)
    )
    size = f"One file for all tasks: {amounts.size(packed)}"
    if separate is None or not separate.mean:
        lines = [f"{size}."]
    else:
        lines = [
            f"{size}, {100 * packed.mean / separate.mean:.0f} % of "
            f"{len(results['tasks'])} separate networks "
            f"({amounts.size(separate)})."
        ]
    differences = transfer.spread(
        _difference(found[PACKED].mean, found[transfer.INDIVIDUAL].mean)
        for found in outcomes.measure(results)
        if PACKED in found and transfer.INDIVIDUAL in found
    )
    if differences is not None:
        lines.append(
            "Mean accuracy against individual networks: "
            f"{amounts.points(differences, '+', '+0.00')} points."
        )
    return lines


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
