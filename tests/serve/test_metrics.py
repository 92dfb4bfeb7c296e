"""Metrics in Prometheus' text format."""

from diffguard_pl.serve.metrics import Count, Histogram, Metrics


def test_a_counter_shows_each_value_of_its_label():
    count = Count("images_total", "Images.", "decision", ["accept", "reject"])
    count.add("accept")
    count.add("accept")
    assert count.lines() == [
        "# HELP images_total Images.",
        "# TYPE images_total counter",
        'images_total{decision="accept"} 2',
        'images_total{decision="reject"} 0',
    ]


def test_the_buckets_of_a_histogram_are_cumulative_and_include_their_bound():
    histogram = Histogram("seconds", "Seconds.", (0.5, 1))
    for value in (0.25, 0.5, 0.75, 4):
        histogram.add(value)
    assert histogram.lines()[2:] == [
        'seconds_bucket{le="0.5"} 2',
        'seconds_bucket{le="1"} 3',
        'seconds_bucket{le="+Inf"} 4',
        "seconds_sum 5.5",
        "seconds_count 4",
    ]


def test_every_metric_has_a_type_and_the_text_ends_in_a_line():
    text = Metrics().text(waiting=3, in_progress=5)
    assert text.endswith("\n")
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"}
    types = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    suffixes = ("_bucket", "_sum", "_count")
    assert {next((n.removesuffix(s) for s in suffixes if n.endswith(s)), n) for n in names} == types
    assert "diffguard_queue_images 3\n" in text
    assert "diffguard_images_in_progress 5\n" in text
