from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from navprune.reports.tables import (
    MISSING,
    Table,
    against_table,
    comparison_tables,
    cost_table,
    encoder_table,
    few_runs,
    latency_table,
    measure_table,
    percent,
    pruning_table,
    rows_table,
    significant,
    spread_table,
)


def cells_of(table, name):
    return dict(zip(table.columns, next(row for row in table.rows if row[0] == name)))


def test_encoder_table_shows_the_published_numbers(rows):
    table = encoder_table(rows)
    pruned = cells_of(table, "ResNet50, pruned")
    assert pruned["MACs (Gi)"] == "0.600" and pruned["parameters (Mi)"] == "2.43"
    assert pruned["saving"] == "51.3 %"  # of 1.231; the published 51.2 % is of unrounded counts
    assert pruned["SPL"] == "0.901" and pruned["95 % interval"] == "0.881 to 0.921"
    assert pruned["success"] == "95.1 %" and pruned["reward"] == "7.10"
    assert pruned["ms, batch 1"] == "25.5" and pruned["ms, batch 8"] == "115"
    assert cells_of(table, "ResNet50")["saving"] == MISSING
    control = cells_of(table, "goal follower")
    assert control["SPL"] == "0.310" and control["MACs (Gi)"] == control["ms, batch 1"] == MISSING


def test_milliseconds_are_those_of_the_runtime_asked_for(rows):
    assert cells_of(encoder_table(rows, runtime="compiled"), "ResNet50")["ms, batch 1"] == MISSING


def test_columns_of_milliseconds_are_the_batches_measured(rows):
    ones = [replace(row, latency=[time for time in row.latency if time["batch_size"] == 1]) for row in rows]
    assert [name for name in encoder_table(ones).columns if name.startswith("ms")] == ["ms, batch 1"]


def test_what_takes_many_times_as_much_is_no_saving():
    assert (percent(0.344), percent(-0.2), percent(-538.919)) == ("34.4 %", "-20.0 %", "540 times as much")


def test_latency_table_sets_realised_beside_theoretical(rows):
    table = latency_table([line for row in rows for line in row.latency])
    assert table.rows[2] == ("ResNet50, pruned", "eager", "1", "25.5", "28.1", "30.6", "28.6 %", "51.3 %")
    assert table.columns[-1] == "in theory (deployed MACs)"
    failed = dict(rows[0].latency[0], median_ms=None, p95_ms=None, saving_realised=None)
    del failed["p99_ms"]  # as rows written before there was one
    assert latency_table([failed]).rows[0][3:7] == (MISSING,) * 4


def test_runs_and_scenes_are_shown(rows):
    table = spread_table(rows)
    assert table.rows[0] == ("ResNet50", "2", "0.907", "0.897 to 0.917", "Cantwell", "0.449")
    assert table.rows[2][:2] == ("goal follower", MISSING)


def test_agents_are_shown_against_the_first(comparisons):
    table = against_table(comparisons)
    assert table.columns[0] == "SPL against ResNet50" and table.columns[-1] == "worse by less than 0.02"
    interval, wins = "-0.016 to +0.024", "49 to 55 %"
    pruned = ("ResNet50, pruned", "+0.004", interval, "0.400", "52 %", wins, "-0.014", "shown, p 0.012")
    assert table.rows[0] == pruned
    assert table.rows[1][3] == "< 0.001" and table.rows[1][-1] == "not shown, p 1.000"


def test_what_was_not_measured_has_no_table(rows, comparisons):
    bare = [replace(row, statistics=None) for row in rows]
    assert [table.columns[0] for table in comparison_tables(rows, comparisons)] == [
        "encoder",
        "SPL",
        "SPL against ResNet50",
    ]
    assert len(comparison_tables(rows, {})) == 2 and len(comparison_tables(bare, {})) == 1


def test_few_runs_and_a_single_scene_are_told(rows):
    def said(count, scenes=14):
        runs = [str(i) for i in range(count)]
        return " ".join(few_runs([replace(rows[0], runs=runs, statistics={**rows[0].statistics, "scenes": scenes})]))

    assert said(5) == said(10) == "" and few_runs([rows[2], replace(rows[0], statistics=None)]) == []
    assert "Of one run" in said(1) and "Of 2 runs" in said(2) and "Of 4 runs" in said(4)
    assert "Of one scene" in said(5, scenes=1)


def test_other_tables_hold_their_numbers(rows, pruning):
    assert cost_table({"r": rows[0].cost}).rows[0][:4] == ("r", "1 x 256 x 256", "1.23", "5.59")
    found = {"deployed": {"macs": 2e6, "parameters": 1e5}, "thop": {"operations": 3e6}, "input": [3, 32, 32]}
    classifier = cost_table({"c": found})
    assert classifier.rows[0] == ("c", "3 x 32 x 32", "2.00", "0.100", "3.00") and len(classifier.columns) == 5
    assert measure_table(rows[0].evaluation).rows[0] == ("spl", "0.897", "0.877 to 0.917")
    cut = pruning_table(pruning).rows
    assert ("stage1.trunk", "128", "96", "25.0 %") in cut and cut[0][0] == "table 1 MACs (Gi)"
    deployed = {
        "before": {"deployed": {"macs": 8e6, "parameters": 4e5}},
        "after": {"deployed": {"macs": 2e6, "parameters": 1e5}},
    }
    assert ("deployed MACs (M)", "8.00", "2.00", "75.0 %") in pruning_table({**deployed, "widths": {"fc": [2, 1]}}).rows
    assert rows_table([{"scene": "a", "frames_per_second": 812.4}, {"scene": "b"}]).rows == [
        ("a", "812"),
        ("b", MISSING),
    ]


cells = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6))
def test_columns_line_up(rows):
    table = Table(("name", "first", "second"), tuple(rows))
    lines = table.text().splitlines()
    widths = [len(part) for part in lines[1].split("  ")]
    edges = (widths[0] + 2 + widths[1], sum(widths) + 4)
    for line, row in zip((lines[0], *lines[2:]), (table.columns, *table.rows)):
        assert line.startswith(row[0])
        assert line[: edges[0]].endswith(row[1]) and line[: edges[1]].endswith(row[2])
    assert table.markdown().count("|") == 4 * (len(rows) + 2)


@given(st.floats(0.1, 1e6))
def test_three_digits_are_kept(value):
    assert abs(float(significant(value).replace(",", "")) - value) <= max(0.005 * value, 5e-5)


def test_small_numbers_show_four_decimals():
    assert significant(0.00481) == "0.0048" and significant(0) == "0.0000"
    assert percent(None) == significant(None) == MISSING and percent(-0.031) == "-3.1 %"
