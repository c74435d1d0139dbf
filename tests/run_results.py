"""Results as a run leaves them, and the page as a browser would see it."""

import copy
import html.parser

import numpy as np
from PIL import Image
from reporting import page

HOSTILE = "<script>alert('1')</script> & \"quoted\" $\\frac$"
TASKS = {"a": ["cat", "dog"], "b": [HOSTILE, "猫", "x" * 60]}


def make_task(name, class_names):
    return {
        "name": name,
        "source": f"npz:{name}.npz",
        "classes": len(class_names),
        "class_names": class_names,
        "examples": {"train": 4000, "val": 40, "test": 8},
        "data_fingerprint": "ab" * 32,
        "skipped": ["bad.jpg: cannot be read <b>"] if name == "b" else [],
    }


def make_method(method, matrix, order):
    entry = {
        "matrix": matrix,
        "history": {
            task: [{"loss": 1.0, "val_accuracy": 0.1 * i} for i in range(1, 6)]
            for task in order
        },
        "phases": {task: [["train", 3], ["retrain", 2]] for task in order},
        "bytes": 3000 if method == "individual" else 1000,
        "seconds": 12.3,
    }
    if method == "packnet":
        entry |= {
            "shares": dict.fromkeys(order, 0.5),
            "owned": dict.fromkeys(order, 50),
            "sparsities": {order[0]: 0.5, order[1]: 0.0},
            "fingerprints": {task: task * 64 for task in order},
            "export_bytes": dict.fromkeys(order, 1500),
            "capacity": {},
        }
    return entry


MATRICES = {
    "packnet": [[0.75, None], [0.75, 0.5]],
    "individual": [[0.5, None], [None, 0.875]],
    "finetune": [[0.75, None], [0.25, 0.5]],
    "joint": [[None, None], [1.0, 0.5]],
}


def make_repeat(methods, number=0, order=("a", "b"), folder="."):
    return {
        "name": f"seed{number}",
        "seed": number,
        "order": list(order),
        "folder": folder,
        "methods": {
            method: make_method(
                method, copy.deepcopy(MATRICES[method]), list(order)
            )
            for method in methods
        },
    }


def make_results(*methods, repeats=None):
    return {
        "flags": {"tasks": ["a", "b"], "run_dir": "<run>", "weights": None},
        "versions": {"keras": "3.15"},
        "seconds": 123.4,
        "tasks": [make_task(*item) for item in TASKS.items()],
        "repeats": repeats or [make_repeat(methods)],
    }


def arrays(**changed):
    """The predictions on task a: three of four are right."""
    found = {
        "labels": np.array([0, 0, 1, 1], np.int32),
        "predicted": np.array([0, 1, 1, 1], np.int32),
        "images": np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5, 1),
        "places": np.array([0, 1], np.int64),
        **changed,
    }
    return {name: value for name, value in found.items() if value is not None}


def save_predictions(folder, task="a", save=np.savez, **changed):
    path = folder / "predictions" / "packnet" / f"{task}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, **arrays(**changed))
    return path


def make_whole(run_dir):
    """Returns results of which all files are there, and their folder."""
    save_predictions(run_dir)
    save_predictions(
        run_dir,
        "b",
        labels=np.array([0, 1, 2, 2], np.int32),
        predicted=np.array([1, 1, 2, 2], np.int32),
        images=np.zeros((2, 300, 200, 3), np.uint8),
    )
    Image.new("RGB", (4, 4)).save(run_dir / "capacity.png")
    return make_results(*MATRICES), run_dir


class Page(html.parser.HTMLParser):
    """What a browser would see: text by section, pictures, elements."""

    def __init__(self, text):
        super().__init__()
        self.tags = set()
        self.attributes = []
        self.images = []
        self.sections = {"": ""}
        self.open = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        if self.open and self.open[-1] == "h2":
            self.sections[data] = ""
            return
        last = list(self.sections)[-1]
        self.sections[last] += data + "\n"


def write(results, run_dir):
    page.write(results, run_dir)
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))
