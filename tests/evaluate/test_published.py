from igpo_jax.evaluate.published import PUBLISHED, published_beside


def test_published_accuracies_stand_beside_the_measured_ones():
    found = {"pass@1": 0.78, "interval95": [0.76, 0.80]}
    lines = published_beside({"gsm8k": found, "arithmetic": found, "amc": {"pass@1": None, "interval95": None}})
    assert list(lines) == ["gsm8k", "amc"] and [len(lines[name]) for name in lines] == [5, 2]
    assert lines["gsm8k"][0].startswith("LLaDA-8B-Instruct: 81.5, difference -3.5, outside the interval (IGPO, arXiv 2509.10396")
    assert (
        lines["gsm8k"][2].startswith("LLaDA-8B-Instruct: 77.2, difference +0.8, within the interval (SPG")
        and "256 tokens" in lines["gsm8k"][2]
    )
    assert lines["amc"][0].startswith("LLaDA-8B-Instruct: 14.5 (IGPO")


def test_rows_are_percentages_of_the_benchmarks_in_the_configuration():
    from runpy import run_path

    benchmarks = run_path("configs/evaluate_math.py")["get_config"]().benchmarks
    assert set(PUBLISHED) <= set(benchmarks) and all(1 < row[1] < 100 for rows in PUBLISHED.values() for row in rows)
