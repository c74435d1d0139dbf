import pytest

from packnet_tf import flag_words

FLAGS = {
    "also": [],
    "task": "two",
    "max_bytes": 10,
    "format": None,
    "tasks": {"a": 2.0, "b": 1.0},
    "quantize": "int8",
    "representative_data": None,
}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Name them in `also`: also=['three', 'four']. Received: also=[]",
            "Name them in `--also`: --also=three,four. Received: no --also",
        ),
        (
            "Allow for it with `max_bytes=49048`. Received: max_bytes=10",
            "Allow for it with `--max_bytes=49048`. Received: --max_bytes=10",
        ),
        (
            "Give `representative_data=`, some. Received: quantize='int8', "
            "representative_data=None",
            "Give `--representative_data=`, some. Received: --quantize=int8, "
            "no --representative_data",
        ),
        ("Weights. Received: tasks={'a': 2}", "Weights. Received: --tasks=a:2"),
        # No flag was given that it could be.
        ("No. Received: format='keras'", "No. Received: format='keras'"),
        ("No. Received: task='two'", "No. Received: --task=two"),
        ("Other `heads=3`. Received: path='x'",) * 2,
        ("As --max_bytes=7 says, my.task=1, tasks",) * 2,
        (
            "Load it with `packnet_tf.load_pack(path, max_bytes=123)`.",
            "Load it with `--max_bytes=123`.",
        ),
        ("Open it with `safe_mode=False`.", "Open it with `--trust`."),
        (
            "Load this with `packnet_tf.load_task`. Received: x",
            "Add this to a model with `packnet apply`. Received: x",
        ),
    ],
)
def test_arguments_become_flags(message, expected):
    assert flag_words.translate(message, FLAGS) == expected


def test_flags_that_a_command_lacks_stay_arguments():
    message = "Name them in `also`. Received: task='two'"
    assert flag_words.translate(message, {}) == message
