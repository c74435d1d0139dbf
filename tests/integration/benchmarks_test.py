import gc
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "examples" / "benchmarks"
sys.path.append(str(BENCHMARKS))

import in_turn  # noqa: E402
import measuring  # noqa: E402

# How each program runs within seconds, in one process.
QUICK = {
    "training_step": ["--noisolate", "--tasks=last"],
    "prediction": ["--noisolate", "--networks=cnn", "--kinds=older"],
    "serving": ["--noisolate", "--kinds=all_older"],
    "selecting": ["--sizes=1000", "--owned=half"],
    "memory": ["--noisolate", "--subjects=first"],
    "growth": ["--tasks=2,1"],
    "scaling": ["--noisolate"],
    "startup": ["--rounds=1"],
    "file_sizes": [],
}
SLOW = (
    "file_sizes",
    "growth",
    "memory",
    "prediction",
    "scaling",
    "selecting",
    "serving",
    "startup",
)
SHORT = ["--rounds=2", "--warmup_rounds=0", "--block_seconds=0.001"]


def start(program, *arguments):
    """Starts a program as a user does, from the project's folder."""
    return subprocess.Popen(
        [sys.executable, f"examples/benchmarks/{program}.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(program, *arguments):
    process = start(program, *arguments)
    output, progress = process.communicate()
    return process.returncode, output, progress


class QuickRuns(dict):
    """Output, progress and JSON of a quick run, made when first asked for."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __missing__(self, program):
        path = self.folder / "new" / f"{program}.json"
        arguments = QUICK[program]
        if program != "memory":
            arguments = [*SHORT, *arguments]
        code, output, progress = run(
            program, "--quick", f"--json={path}", *arguments
        )
        assert code == 0, progress[-3000:]
        self[program] = output, progress, json.loads(path.read_text())
        return self[program]


@pytest.fixture(scope="module")
def quick_runs(tmp_path_factory):
    return QuickRuns(tmp_path_factory.mktemp("benchmarks"))


class Machine:
    """A clock, and subjects that take a known time by it."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def clock(self):
        return self.now

    def subject(self, name, step, fixed=0.0, slowness=lambda: 1.0):
        def run(steps):
            self.calls.append((name, steps))
            self.now += slowness() * (fixed + steps * step)

        return run


@pytest.fixture
def machine():
    return Machine()


def test_the_ratio_does_not_see_how_fast_the_machine_is(machine):
    speeds = {"a": iter([1, 1, 7, 2, 30]), "b": iter([1, 1, 7, 2, 30])}
    rounds = in_turn.compare(
        {
            name: machine.subject(name, step, 0, lambda n=name: next(speeds[n]))
            for name, step in (("a", 0.75), ("b", 0.5))
        },
        in_turn.Settings(rounds=5, warmup_rounds=0),
        steps=4,
        clock=machine.clock,
    )
    assert rounds.ms["b"] == pytest.approx([500, 500, 3500, 1000, 15000])
    assert rounds.median("b") == pytest.approx(1000)
    assert rounds.median("a") == pytest.approx(1500)
    ratio = rounds.ratio("a", "b")
    assert (ratio.q1, ratio.median, ratio.q3) == pytest.approx((1.5, 1.5, 1.5))
    assert rounds.ratio("b", "a").median == pytest.approx(2 / 3)


def test_the_order_is_flipped_every_other_round(machine):
    in_turn.compare(
        {name: machine.subject(name, 1.0) for name in "abc"},
        in_turn.Settings(rounds=3, warmup_rounds=1),
        steps=2,
        clock=machine.clock,
    )
    assert "".join(name for name, _ in machine.calls) == "abccbaabccba"
    assert {steps for _, steps in machine.calls} == {2}


def test_rounds_to_warm_up_are_not_counted(machine):
    speeds = iter([100, 100, 1, 2, 3])
    rounds = in_turn.compare(
        {"a": machine.subject("a", 0.001, 0, lambda: next(speeds))},
        in_turn.Settings(rounds=3, warmup_rounds=2),
        steps=5,
        clock=machine.clock,
    )
    assert rounds.ms["a"] == pytest.approx([1, 2, 3])


def test_preparing_is_not_timed(machine):
    def prepare():
        machine.now += 50

    rounds = in_turn.compare(
        {"a": machine.subject("a", 0.001)},
        in_turn.Settings(rounds=2, warmup_rounds=0),
        steps=1,
        prepare=prepare,
        clock=machine.clock,
    )
    assert machine.now > 100
    assert rounds.ms["a"] == pytest.approx([1, 1])


def test_a_row_holds_what_was_measured():
    ms = {"packed": [3.0, 4.0, 9.0, 8.0], "plain": [2.0, 4.0, 3.0, 8.0]}
    rounds = in_turn.Rounds(7, ms)
    assert rounds.to_row("packed", "plain") == {
        "plain_ms": 3.5,
        "packed_ms": 6.0,
        "ratio": 1.25,
        "q1": 1.0,
        "q3": 1.875,
        "ratio_of_fastest": 1.5,
        "rounds": 4,
        "steps_per_round": 7,
        "plain_ms_of_rounds": ms["plain"],
        "packed_ms_of_rounds": ms["packed"],
    }
    assert rounds.difference("packed", "plain").median == 0.5


@pytest.mark.parametrize("count", [1, 2, 3, 4, 11])
def test_quartiles_are_those_of_numpy(count):
    values = np.random.default_rng(count).random(count).tolist()
    spread = in_turn.Spread.of(values)
    assert [spread.q1, spread.median, spread.q3] == pytest.approx(
        np.percentile(values, [25, 50, 75]).tolist()
    )


@pytest.mark.slow
def test_a_block_is_long_beside_the_fixed_cost(machine):
    run = machine.subject("a", 0.001, fixed=0.012)
    steps = in_turn.calibrate(run, 0.1, machine.clock)
    assert 0.012 / (0.012 + steps * 0.001) == pytest.approx(0.03, rel=0.01)


@pytest.mark.slow
def test_a_block_lasts_as_long_as_asked_for(machine):
    run = machine.subject("a", 0.001)
    assert in_turn.calibrate(run, 0.1, machine.clock) == pytest.approx(
        100, abs=1
    )
    slow = machine.subject("a", 0.7)
    assert in_turn.calibrate(slow, 0.1, machine.clock) == 1


@pytest.mark.slow
def test_a_block_is_not_stretched_without_end(machine):
    run = machine.subject("a", 0.001, fixed=0.05)
    steps = in_turn.calibrate(run, 0.1, machine.clock)
    assert 0.05 + steps * 0.001 == pytest.approx(0.5)
    assert in_turn.MAX_STRETCH == 5


def test_the_fastest_subject_tells_the_steps_of_all(machine):
    rounds = in_turn.compare(
        {
            "slow": machine.subject("slow", 0.01),
            "fast": machine.subject("fast", 0.001),
        },
        in_turn.Settings(rounds=1, warmup_rounds=0, block_seconds=0.5),
        clock=machine.clock,
    )
    assert rounds.steps == pytest.approx(500, abs=1)
    assert machine.calls[-2:] == [
        ("slow", rounds.steps),
        ("fast", rounds.steps),
    ]


def test_the_garbage_collector_rests_while_a_block_is_timed():
    seen = []

    def run(steps):
        seen.append(gc.isenabled())
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        in_turn.time_block(run, 1)
    assert seen == [False]
    assert gc.isenabled()


def test_chains_run_in_order_and_subjects_in_turn(machine):
    def call(subject, name, seconds):
        def made():
            machine.calls.append(subject + name)
            machine.now += seconds

        return made

    found = in_turn.compare_chains(
        {
            "a": {"1": call("a", "1", 1.0), "2": call("a", "2", 2.0)},
            "b": {"1": call("b", "1", 3.0), "2": call("b", "2", 1.0)},
        },
        in_turn.Settings(rounds=2, warmup_rounds=1),
        clock=machine.clock,
    )
    assert machine.calls == "a1 a2 b1 b2 b1 b2 a1 a2 a1 a2 b1 b2".split()
    assert found["1"].ratio("b", "a").median == pytest.approx(3)
    assert found["2"].ratio("b", "a").median == pytest.approx(0.5)
    assert found["1"].ms["a"] == pytest.approx([1000, 1000])


def test_the_geometric_mean_cancels_inverse_ratios():
    assert in_turn.geometric_mean([4.0, 0.25]) == pytest.approx(1)
    assert in_turn.geometric_mean([1.0, 8.0, 1.0]) == pytest.approx(2)


def test_a_cell_that_fails_does_not_stop_the_rest(capfd):
    def measure(cell):
        if cell["name"] == "b":
            raise MemoryError("no room")
        return {"value": cell["name"].upper()}

    rows = measuring.measure_all([{"name": name} for name in "abc"], measure)
    assert rows == [
        {"name": "a", "value": "A"},
        {"name": "b", "error": "MemoryError: no room"},
        {"name": "c", "value": "C"},
    ]
    progress = capfd.readouterr().err
    assert "[2/3] b" in progress
    assert "failed: MemoryError: no room" in progress


def test_every_program_is_tried():
    programs = {
        path.stem
        for path in BENCHMARKS.glob("*.py")
        if "__main__" in path.read_text(encoding="utf-8")
    }
    assert programs == set(QUICK)


@pytest.mark.parametrize("program", QUICK)
def test_help_says_what_is_measured_and_lists_the_flags(program):
    _, output, _ = run(program, "--help")
    assert f"python examples/benchmarks/{program}.py" in output
    for flag in ("--json", "--[no]quick"):
        assert flag in output


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in QUICK
    ],
)
def test_a_quick_run_ends_with_a_table_and_the_same_as_json(
    program, quick_runs
):
    output, progress, data = quick_runs[program]
    assert data["program"] == program
    assert data["flags"]["quick"] is True
    assert set(data["versions"]) == {
        "keras",
        "numpy",
        "packnet_tf",
        "python",
        "tensorflow",
    }
    assert data["machine"]["cpus"] == os.cpu_count()
    assert data["machine"]["cpu"]
    assert data["rows"]
    assert progress.strip()
    if program != "memory":
        assert data["settings"] == {
            "rounds": 1 if program == "startup" else 2,
            "warmup_rounds": 0,
            "block_seconds": 0.001,
        }
    for row in data["rows"]:
        numbers = [
            row[key]
            for key in row
            if key == "ms" or (key.endswith("_ms") and key != "difference_ms")
        ]
        assert all(number > 0 for number in numbers)
        for number in numbers:
            assert f"{number:,.3f}" in output or key_is_left_out(row, number)
        if "ratio" in row:
            assert f"{row['ratio']:.3f}" in output


def key_is_left_out(row, number):
    """Returns whether the table has only ratios to this number."""
    return number in (row.get("argsort_ms"), row.get("taken_ms"))


def test_training_step_sums_up(quick_runs):
    output, _, data = quick_runs["training_step"]
    (row,) = data["rows"]
    assert row["network"] == "cnn"
    assert row["task"] == "last"
    assert row["rounds"] == len(row["packed_ms_of_rounds"]) == 2
    assert set(row["jit_compile"]) == {"packed", "plain"}
    ratio = data["summary"]["geometric_mean"]
    assert ratio == pytest.approx(row["ratio"])
    assert f"Geometric mean of 1 ratios: {ratio:.3f}" in output
    assert f"Worst: {row['ratio']:.3f} (cnn 28, sgd, last)" in output


@pytest.mark.slow
def test_growth_compares_with_the_fewest_tasks(quick_runs):
    _, _, data = quick_runs["growth"]
    found = {(row["what"], row["tasks"]): row for row in data["rows"]}
    names = {name for name, _ in found}
    assert names >= {"training_step", "switch", "save", "add_task", "file_mb"}
    for name in names:
        assert found[name, 1]["ratio"] == 1
        assert found[name, 2]["ratio"] > 0
    assert found["file_mb", 2]["bytes"] > found["file_mb", 1]["bytes"]


@pytest.mark.slow
def test_selecting_has_scores_and_a_network(quick_runs):
    _, _, data = quick_runs["selecting"]
    assert [row["what"] for row in data["rows"]] == ["scores", "scores", "cnn"]
    assert data["rows"][-1]["weights"] > 10_000
    assert data["rows"][0]["argsort_ratio"]["median"] > 0


@pytest.mark.slow
def test_memory_reads_the_peaks_of_its_process(quick_runs):
    output, _, data = quick_runs["memory"]
    (row,) = data["rows"]
    assert row["subject"] == "first"
    assert row["process_bytes"] >= row["imports_bytes"] > 50e6
    assert f"process_bytes: {row['process_bytes'] / 1e6:,.1f} MB" in output


@pytest.mark.slow
def test_startup_imports_and_wraps(quick_runs):
    _, _, data = quick_runs["startup"]
    imported, wrapped = data["rows"]
    assert imported["subjects"] == ["packnet_tf", "keras"]
    assert wrapped["subjects"] == ["wrap", "clone_model"]
    assert wrapped["network"] == "cnn"


@pytest.mark.slow
def test_scaling_trains_on_several_devices(quick_runs):
    _, _, data = quick_runs["scaling"]
    (row,) = data["rows"]
    assert row["part"] == "step"
    assert row["devices"] == row["replicas"] == 2
    assert row["rounds"] == len(row["packed_ms_of_rounds"]) == 2


@pytest.mark.parametrize(
    ("program", "flag", "expected"),
    [
        ("training_step", "--networks=vgg", "vgg16"),
        ("training_step", "--networks=", "nothing"),
        ("training_step", "--sizes=64,large", "64,large"),
        ("training_step", "--sizes=8", "from 32 to 1024"),
        ("training_step", "--optimizers=sdg", "sgd, adam, adamw"),
        ("training_step", "--tasks=first,second", "first,second"),
        ("training_step", "--batch_size=0", "--batch_size"),
        ("training_step", "--jit_compile=maybe", "auto|true|false"),
        ("training_step", "cnn", "--help"),
        ("prediction", "--kinds=oldest", "older"),
        ("serving", "--kinds=older", "all_selecting"),
        ("serving", "--batch_sizes=0", "from 1 to 4096"),
        ("selecting", "--sparsities=50", "from 0 to 0.999"),
        ("selecting", "--sparsities=nan", "nan"),
        ("memory", "--subjects=second", "plain, first, middle, last"),
        ("memory", "--noisolate", "combinations"),
        ("growth", "--tasks=0", "from 1 to 254"),
        ("scaling", "--parts=steps", "step, network"),
        ("scaling", "--devices=0", "from 1 to 64"),
        ("scaling", "--noisolate", "--devices=1,2,4"),
        ("scaling", "--subjects=newest", "layer_full"),
        ("startup", "--network=lenet", "cnn|transformer"),
        ("startup", "--rounds=0", "--rounds"),
        ("startup", f"--json={ROOT}", "--json takes the path of a file"),
        ("startup", f"--json={ROOT}/setup.py/a.json", "--json"),
    ],
)
def test_a_mistake_in_a_flag_is_one_clear_line(program, flag, expected):
    status, output, errors = run(program, flag)
    assert status == 1
    assert output == ""
    assert "Traceback" not in errors
    assert errors.startswith(("error: ", "FATAL Flags parsing error:"))
    assert expected in errors


@pytest.mark.slow
def test_results_of_a_cell_that_failed_are_written(tmp_path):
    path = tmp_path / "results.json"
    status, output, errors = run(
        "training_step",
        "--quick",
        "--noisolate",
        "--tasks=control",
        f"--batch_size={10**12}",
        f"--json={path}",
    )
    assert status == 1
    assert "error: 1 of 1 cells failed" in errors.splitlines()[-1]
    assert "failed" in output
    (row,) = json.loads(path.read_text())["rows"]
    assert row["error"].startswith("MemoryError")


@pytest.mark.slow
def test_cells_run_in_processes_of_their_own(tmp_path):
    path = tmp_path / "results.json"
    status, output, errors = run(
        "training_step",
        "--quick",
        "--tasks=first,control",
        f"--json={path}",
        *SHORT,
    )
    assert status == 0, errors[-3000:]
    rows = json.loads(path.read_text())["rows"]
    assert [row["task"] for row in rows] == ["first", "control"]
    for row in rows:
        assert row["rounds"] == 2
        assert f"{row['packed_ms']:,.3f}" in output


@pytest.mark.slow
def test_memory_compares_processes(tmp_path):
    path = tmp_path / "results.json"
    status, output, errors = run("memory", "--quick", f"--json={path}")
    assert status == 0, errors[-3000:]
    (row,) = json.loads(path.read_text())["rows"]
    assert set(row["peaks"]) == {"plain", "last"}
    for peaks in row["peaks"].values():
        assert f"{peaks['process_bytes'] / 1e6:,.1f}" in output


@pytest.mark.slow
def test_scaling_runs_devices_in_processes_of_their_own(tmp_path):
    path = tmp_path / "results.json"
    status, output, errors = run(
        "scaling",
        "--quick",
        "--devices=1,4",
        "--tasks=first",
        f"--json={path}",
        *SHORT,
    )
    assert status == 0, errors[-3000:]
    rows = json.loads(path.read_text())["rows"]
    assert [row["replicas"] for row in rows] == [1, 4]
    for row in rows:
        assert f"{row['packed_ms']:,.3f}" in output


@pytest.mark.slow
def test_workers_send_no_gradients_of_what_has_none(tmp_path):
    path = tmp_path / "results.json"
    status, output, errors = run(
        "scaling",
        "--quick",
        "--parts=network",
        "--subjects=plain,last,layer_full",
        "--repeats=2",
        f"--json={path}",
    )
    assert status == 0, errors[-3000:]
    rows = {r["subject"]: r for r in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["plain", "last", "layer_full"]
    plain, last, layer_full = rows.values()
    assert plain["gradient_bytes"] == plain["owned_bytes"]
    assert last["owned_bytes"] < last["gradient_bytes"]
    assert last["frozen_head_bytes"] == 3 * layer_full["frozen_head_bytes"] > 0
    assert layer_full["full_bytes"] > layer_full["gradient_bytes"]
    assert (
        layer_full["full_bytes"] + layer_full["gradient_bytes"]
        == last["gradient_bytes"]
    )
    for row in rows.values():
        if row["sent_bytes"] is None:
            assert "/proc/net/dev" in output
            continue
        # Others on this machine add to it, and each step sends metrics too.
        rest = row["sent_bytes"] - row["gradient_bytes"]
        assert 0 < rest < layer_full["full_bytes"] / 2
        assert f"{row['sent_bytes'] / 1e3:,.3f}" in output


@pytest.mark.slow
def test_every_kind_of_prediction_runs(tmp_path):
    path = tmp_path / "results.json"
    status, _, errors = run(
        "prediction", "--quick", "--noisolate", f"--json={path}", *SHORT
    )
    assert status == 0, errors[-3000:]
    rows = json.loads(path.read_text())["rows"]
    assert [row["kind"] for row in rows] == ["newest", "older"]


@pytest.mark.slow
def test_every_kind_of_serving_runs(tmp_path):
    path = tmp_path / "results.json"
    status, _, errors = run(
        "serving", "--quick", "--noisolate", f"--json={path}", *SHORT
    )
    assert status == 0, errors[-3000:]
    rows = {row["kind"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == [
        "task_newest",
        "task_older",
        "all_newest",
        "all_older",
        "all_selecting",
    ]
    assert (
        rows["all_older"]["packed_bytes"] > rows["task_older"]["packed_bytes"]
    )
