import csv

import numpy as np
import pytest
from reporting import amounts
from reporting import report
from reporting import transfer
from run_results import MATRICES
from run_results import make_repeat
from run_results import make_results
from run_results import make_task
from run_results import write


def test_the_packed_network_alone():
    assert report.to_text(make_results("packnet")).splitlines() == [
        "task          after learning  at the end  individual  "
        "share of weights  size exported",
        "-" * 85,
        "a                    75.00 %     75.00 %           -  "
        "         50.00 %        1.50 kB",
        "b                    50.00 %     50.00 %           -  "
        "         50.00 %        1.50 kB",
        "-" * 85,
        "mean / total         62.50 %     62.50 %           -  "
        "        100.00 %        3.00 kB",
        "",
        "Accuracy on the test part. No task changed after it was learned.",
        "One file for all tasks: 1.00 kB.",
        "Training took 123 seconds.",
    ]


def test_the_packed_network_next_to_individual_ones():
    results = make_results("packnet", "individual")
    lines = report.to_text(results).splitlines()
    assert [row[3] for row in report.to_rows(results)] == [
        "individual",
        "50.00 %",
        "87.50 %",
        "68.75 %",
    ]
    assert lines[-4:] == [
        "Accuracy on the test part. No task changed after it was learned.",
        "One file for all tasks: 1.00 kB, 33 % of 2 separate networks "
        "(3.00 kB).",
        "Mean accuracy against individual networks: -6.25 points.",
        "Training took 123 seconds.",
    ]
    # One table only: there is nothing else to compare with.
    assert not any(line.startswith("method") for line in lines)


def test_methods_are_compared():
    results = make_results(*MATRICES)
    rows = report.to_method_rows(results)
    assert [" ".join(row) for row in rows] == [
        "method mean a b forgetting backward forward size seconds",
        "packnet 62.50 % 75.00 % 50.00 % 0 0 -37.50 1.00 kB 12",
        "individual 68.75 % 50.00 % 87.50 % - - - 3.00 kB 12",
        "finetune 37.50 % 25.00 % 50.00 % 50.00 -50.00 -37.50 1.00 kB 12",
        "joint 75.00 % 100.00 % 50.00 % - - - 1.00 kB 12",
    ]
    text = report.to_text(results)
    assert text.index("task  ") < text.index("method  ")
    for row in rows:
        assert any(
            line.split() == " ".join(row).split() for line in text.splitlines()
        )


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (99_949, "99.9 kB"),
        (143_204, "143 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_669_999, "1.67 MB"),
        (12_345_678, "12.3 MB"),
        (595_000_000, "595 MB"),
        (1.2e13, "12.0 TB"),
    ],
)
def test_sizes_have_three_digits(count, expected):
    assert amounts.size(transfer.spread([count])) == expected


def test_a_few_bytes_more_give_the_same_report(tmp_path):
    results = make_results("packnet", "individual", "finetune")
    methods = results["repeats"][0]["methods"]
    for entry in methods.values():
        entry["bytes"] = 1_672_310
    methods["packnet"]["export_bytes"] = {"a": 143_204, "b": 143_207}
    text = report.to_text(results)
    sections = write(results, tmp_path).sections
    assert "1.67 MB" in text
    assert "143 kB" in text
    assert "1.67 MB" in sections["Methods"]
    assert "286 kB" in sections["The packed network"]
    for entry in methods.values():
        entry["bytes"] += 7
    methods["packnet"]["export_bytes"]["a"] -= 3
    assert report.to_text(results) == text
    assert write(results, tmp_path).sections == sections


def test_the_packed_network_need_not_be_there(tmp_path):
    results = make_results("finetune", "joint")
    text = report.to_text(results)
    assert text.startswith("method")
    assert "One file" not in text
    assert "CHANGED" not in text
    assert "changed" not in text
    page = write(results, tmp_path)
    assert "Methods" in page.sections
    assert "The packed network" not in page.sections
    assert "Fingerprints" not in page.sections


def test_a_packed_task_that_changed_is_shouted(tmp_path):
    results = make_results("packnet")
    matrix = results["repeats"][0]["methods"]["packnet"]["matrix"]
    matrix[1][0] = float(np.nextafter(0.75, 0))
    assert "A TASK CHANGED AFTER IT WAS LEARNED." in report.to_text(results)
    assert "Changed: a (seed0)." in report.to_text(results)
    assert "No task changed" not in report.to_text(results)
    assert "A TASK CHANGED" in write(results, tmp_path).sections[""]


def test_one_repeat_that_changed_is_enough():
    results = make_results(
        repeats=[make_repeat(["packnet"], number) for number in range(3)]
    )
    assert "No task changed" in report.to_text(results)
    results["repeats"][2]["methods"]["packnet"]["matrix"][1][0] = 1.0
    assert "A TASK CHANGED" in report.to_text(results)
    assert "Changed: a (seed2)." in report.to_text(results)


def test_what_is_not_known_is_not_called_unchanged():
    results = make_results("packnet")
    results["repeats"][0]["methods"]["packnet"]["matrix"][1][0] = None
    text = report.to_text(results)
    assert "No task changed" not in text
    assert "TASK CHANGED" not in text
    assert "Not known whether it changed" in text
    assert "a (seed0)" in text


def test_repeats_are_averaged_by_the_names_of_their_tasks():
    repeats = [
        make_repeat(["packnet", "finetune"], 0, ["b", "a"], "seed0"),
        make_repeat(["packnet"], 1, ["a", "b"], "seed1"),
    ]
    results = make_results(repeats=repeats)
    table = report.to_rows(results)
    assert [row[0] for row in table[1:-1]] == ["a", "b"]
    rows = {row[0]: row for row in table}
    # 0.75 and 0.5 have mean 0.625 and deviation 0.125 * sqrt(2).
    assert rows["a"][1:4] == ["62.50 ± 17.68 %"] * 2 + ["-"]
    assert rows["b"][2] == "62.50 ± 17.68 %"
    assert rows["mean / total"][2] == "62.50 ± 0.00 %"
    header, packed, finetune = report.to_method_rows(results)
    assert header[-1] == "repeats"
    assert [packed[-1], finetune[-1]] == ["2", "1"]
    assert finetune[1] == "37.50 %"
    assert packed[header.index("forgetting")] == "0"
    text = report.to_text(results)
    assert "over 2 repeats: seed0, seed1." in text


def test_tasks_are_listed_as_they_were_learned():
    repeats = [make_repeat(["packnet"], 0, ["b", "a"])]
    table = report.to_rows(make_results(repeats=repeats))
    assert [row[0] for row in table[1:-1]] == ["b", "a"]


def test_wide_tables_are_folded():
    names = [f"task{number}" for number in range(20)]
    repeat = make_repeat(["finetune"])
    repeat["order"] = names
    repeat["methods"]["finetune"]["matrix"] = np.tril(
        np.full((20, 20), 0.5)
    ).tolist()
    results = make_results(repeats=[repeat])
    results["tasks"] = [make_task(name, ["x", "y"]) for name in names]
    lines = report.to_text(results).splitlines()
    tables = [line for line in lines if line.startswith("method")]
    assert len(tables) > 1
    assert max(len(line) for line in tables) <= 120
    assert " ".join(tables).split().count("task13") == 1


def test_a_kept_network_is_told_of():
    results = make_results("packnet", "finetune")
    methods = results["repeats"][0]["methods"]
    methods["packnet"]["kept"] = {
        "name": "imagenet",
        "agreement": 0.9,
        "sparsity": 0.3,
        "accuracy": 0.6,
        "accuracy_before": 0.7,
    }
    methods["finetune"]["kept"] = {"name": "imagenet", "agreement": 0.2}
    text = report.to_text(results)
    assert "imagenet, kept as the first task with 70.00 %" in text
    assert "90.00 % of the tasks' test images." in text
    assert "own: 60.00 %, where the network as it was has 70.00 %." in text
    assert "imagenet, with finetune, chooses" in text
    assert "20.00 % of the tasks' test images." in text


@pytest.fixture
def keeping():
    """Results of a network whose own classifier was kept, with labels."""
    results = make_results("packnet", "finetune")
    results["kept"] = {
        "name": "imagenet",
        "classes": 1000,
        "source": "folder:val",
        "data": [make_task("imagenet (--keep_test)", ["x", "y"])],
    }
    methods = results["repeats"][0]["methods"]
    methods["packnet"]["kept"] = {
        "name": "imagenet",
        "agreement": 0.9,
        "sparsity": 0.75,
        "accuracy": 0.6,
        "accuracy_before": 0.7,
    }
    methods["packnet"]["shares"] = {"imagenet": 0.25, "a": 0.375, "b": 0.375}
    methods["packnet"]["export_bytes"]["imagenet"] = 2000
    methods["packnet"]["fingerprints"]["imagenet"] = "c" * 64
    methods["finetune"]["kept"] = {"name": "imagenet", "agreement": 0.2}
    return results


def test_a_kept_task_has_a_row_and_no_part_in_means(keeping, tmp_path):
    rows = [" ".join(row) for row in report.to_rows(keeping)]
    assert rows == [
        "task after learning at the end individual as it was agreement "
        "share of weights size exported",
        "imagenet - 60.00 % - 70.00 % 90.00 % 25.00 % 2.00 kB",
        "a 75.00 % 75.00 % - - - 37.50 % 1.50 kB",
        "b 50.00 % 50.00 % - - - 37.50 % 1.50 kB",
        "mean / total 62.50 % 62.50 % - - - 100.00 % 5.00 kB",
    ]
    sections = write(keeping, tmp_path).sections
    assert "90.00 %" in sections["The packed network"]
    assert "imagenet (--keep_test)" in sections["Data"]


def test_a_kept_task_without_labels_has_no_accuracy(keeping):
    kept = keeping["repeats"][0]["methods"]["packnet"]["kept"]
    del kept["accuracy"], kept["accuracy_before"]
    header, row = report.to_rows(keeping)[:2]
    assert "as it was" not in header
    assert row[:5] == ["imagenet", "-", "-", "-", "90.00 %"]


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_has_a_line_of_the_kept_task_per_method(keeping, tmp_path):
    report.write_csv(keeping, tmp_path)
    lines = read_csv(tmp_path / "results.csv")
    assert [line["place"] for line in lines] == ["0", "1", "2"] * 2
    assert lines[0] == {
        "repeat": "seed0",
        "seed": "0",
        "method": "packnet",
        "place": "0",
        "task": "imagenet",
        "source": "folder:val",
        "classes": "1000",
        "sparsity": "",
        "share": "0.25",
        "after_learning": "",
        "at_end": "0.6",
        "fingerprint": "c" * 64,
        "accuracy_before": "0.7",
        "agreement": "0.9",
    }
    assert lines[3]["method"] == "finetune"
    assert (lines[3]["agreement"], lines[3]["at_end"]) == ("0.2", "")


def test_the_summary_has_a_line_per_repeat_and_method(tmp_path):
    repeats = [
        make_repeat(list(MATRICES), 3),
        make_repeat(["packnet"], 4),
    ]
    report.write_summary(make_results(repeats=repeats), tmp_path)
    lines = read_csv(tmp_path / "results_summary.csv")
    assert [line["method"] for line in lines] == [*MATRICES, "packnet"]
    assert lines[2] == {
        "repeat": "seed3",
        "seed": "3",
        "method": "finetune",
        "mean": "0.375",
        "forgetting": "0.5",
        "backward": "-0.5",
        "forward": "-0.375",
        "bytes": "1000",
        "seconds": "12.3",
    }
    assert lines[0]["forgetting"] == "0.0"
    assert lines[1]["forgetting"] == lines[1]["forward"] == ""
    assert (lines[4]["repeat"], lines[4]["forward"]) == ("seed4", "")


def test_plan_to_text_lays_columns_out():
    rows = [{"task": "a", "steps": "1,000"}, {"task": "bcdef", "steps": "2"}]
    assert report.plan_to_text(rows).splitlines() == [
        "task   steps",
        "a      1,000",
        "bcdef      2",
    ]


def test_the_csv_has_a_line_per_repeat_method_and_task(tmp_path):
    repeats = [
        make_repeat(list(MATRICES), 3, ["b", "a"]),
        make_repeat(["packnet"], 4),
    ]
    report.write_csv(make_results(repeats=repeats), tmp_path)
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(MATRICES) + 2
    assert lines[0] == {
        "repeat": "seed3",
        "seed": "3",
        "method": "packnet",
        "place": "1",
        "task": "b",
        "source": "npz:b.npz",
        "classes": "3",
        "sparsity": "0.5",
        "share": "0.5",
        "after_learning": "0.75",
        "at_end": "0.75",
        "fingerprint": "b" * 64,
        "accuracy_before": "",
        "agreement": "",
    }
    joint = [line for line in lines if line["method"] == "joint"]
    assert [line["after_learning"] for line in joint] == ["", ""]
    assert [line["at_end"] for line in joint] == ["1.0", "0.5"]
    assert joint[0]["fingerprint"] == joint[0]["sparsity"] == ""
    alone = [line for line in lines if line["method"] == "individual"]
    assert [line["at_end"] for line in alone] == ["0.5", "0.875"]
