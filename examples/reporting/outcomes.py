"""What `results.json` says, by method, repeat and task."""

from typing import Any

from reporting import transfer

PACKED = "packnet"
# The measures of a method that are one number each.
SUMMARY = ("mean", "forgetting", "backward", "forward")


def measure(results: dict[str, Any]) -> list[dict[str, transfer.Measures]]:
    """Measures the methods of each repeat, by name."""
    found = []
    for repeat in results["repeats"]:
        matrices = {
            method: entry["matrix"]
            for method, entry in repeat["methods"].items()
        }
        found.append(
            {
                method: transfer.measure(method, matrices, repeat["order"])
                for method in matrices
            }
        )
    return found


def summarize(results: dict[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """Returns the measures in `SUMMARY` of the methods of each repeat."""
    return [
        {
            method: {name: getattr(found, name) for name in SUMMARY}
            for method, found in measured.items()
        }
        for measured in measure(results)
    ]


def methods(results: dict[str, Any]) -> list[str]:
    """Returns the names of all methods, as they first appear."""
    return list(
        dict.fromkeys(
            method
            for repeat in results["repeats"]
            for method in repeat["methods"]
        )
    )


def compares_methods(results: dict[str, Any]) -> bool:
    """Tells whether there is more than the packed network's own table shows."""
    names = set(methods(results))
    return PACKED not in names or bool(names - {PACKED, transfer.INDIVIDUAL})


def entries(results: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """Returns what is on record of a method, per repeat that has it."""
    return [
        repeat["methods"][method]
        for repeat in results["repeats"]
        if method in repeat["methods"]
    ]


def task_names(results: dict[str, Any]) -> list[str]:
    """Returns the tasks as they were learned, if that is one order."""
    orders = [repeat["order"] for repeat in results["repeats"]]
    if orders and all(order == orders[0] for order in orders):
        return list(orders[0])
    return [task["name"] for task in results["tasks"]]


def kept_name(results: dict[str, Any]) -> str | None:
    """Returns the name of the task that the network came with, if any."""
    for repeat in results["repeats"]:
        for entry in repeat["methods"].values():
            if entry.get("kept"):
                return entry["kept"]["name"]
    return None


def get(entry: dict[str, Any], key: str, task: str) -> Any:
    """Returns what a method has of a task; `None` if it has nothing."""
    return entry.get(key, {}).get(task)
