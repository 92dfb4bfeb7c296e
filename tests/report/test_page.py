"""The pages as a browser shows them."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.report_runs import (
    DATASETS,
    card_images,
    change_record,
    make_plain_run,
    make_run,
    page_data,
    read_csv,
)

from diffguard_pl.commands.report import main
from diffguard_pl.metrics.detection import threshold_at_tpr
from diffguard_pl.metrics.table import result_rows
from diffguard_pl.report.build import build
from diffguard_pl.report.comparison import compare
from diffguard_pl.report.page import gallery_cards
from diffguard_pl.report.page.comparison_page import write_comparison_page
from diffguard_pl.report.page.run_page import write_run_page
from diffguard_pl.report.results import RunResults, read_results
from diffguard_pl.runs.store import read_scores, score_table
from diffguard_pl.scores.combination import Cascade, Combination, Fusion

FOCUSED = "document.activeElement.id"


# Size and content of the file


@pytest.mark.slow
def test_a_page_of_ten_thousand_images_stays_below_15_mb_and_names_its_sample(tmp_path):
    # Pictures of noise are as large as pictures get.
    folder = make_run(tmp_path / "run", count=2500, pictures=60, side=256)
    page = build(read_results(folder))[-1]
    assert page.stat().st_size < 15_000_000
    cards = page_data(page)["cards"]
    assert len(cards) < 239
    assert {card["dataset"] for card in cards} == set(DATASETS)
    text = " ".join(page.read_text().split())
    assert re.search(rf"{len(cards)} of the 239 images.*9,999", text)
    assert "1,500 of 2,500 letters" in text, "the sample of the scatter plot"
    of_first = [c["confusion"][0] for c in cards if c["dataset"] == cards[0]["dataset"]]
    assert of_first == sorted(of_first, reverse=True), "the most confusing ones are those shown"


def test_a_page_of_many_datasets_scores_and_small_pictures_stays_below_15_mb(tmp_path, monkeypatch):
    """Here text and curves are larger than pictures."""
    groups = {f"dataset {d}": "near" for d in range(30)}
    scores = tuple(f"score {k}" for k in range(12))
    folder = make_plain_run(
        tmp_path / "run", groups, count=330, scores=scores, path="a folder/" * 13
    )
    frame, header = read_scores(folder)
    images = list(zip(frame["dataset"], frame["index"], strict=True))
    uri = "data:image/webp;base64," + "A" * 120
    panels = dict.fromkeys(("input", "reconstruction", "difference"), uri)
    monkeypatch.setattr(RunResults, "pictures", dict.fromkeys(images, folder))
    monkeypatch.setattr(gallery_cards, "_panels", lambda path: {"pictures": panels, "small": True})
    results = result_rows(score_table(frame, header))
    write_run_page(read_results(folder, results), tmp_path / "report.html")
    assert 13_000_000 < (tmp_path / "report.html").stat().st_size < 15_000_000
    shown = card_images(tmp_path / "report.html")
    assert len(shown) < len(images) == 31 * 330
    assert {dataset for dataset, _ in shown} == set(header.datasets)


def test_a_page_is_one_file_that_loads_nothing_else(built_run):
    page = (built_run / "report.html").read_text()
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', markup)
    assert not re.findall(r"@import|url\((?!#|data:)", markup)


def test_tiles_show_the_metrics_of_a_group_with_their_intervals(built_run):
    page = (built_run / "report.html").read_text()
    tile = re.search(r'<div class="tile">\s*<h2>far.*?</dl>', page, re.S)[0]
    photos = {r.score: r for r in read_results(built_run).results if r.dataset == "photos"}
    for score, metric in (("dists", "auroc"), ("dists", "fpr95"), ("msp", "auroc")):
        low, high = photos[score].intervals[metric]
        assert f"{100 * low:.1f} to {100 * high:.1f}" in tile
        assert f"{100 * getattr(photos[score].metrics, metric):.2f}" in tile


# The page in a browser


@contextlib.contextmanager
def opened(browser, path: Path, **settings) -> Iterator:
    """Open a page from disk; fails on errors and warnings, and if it loads anything else."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
    page, problems = context.new_page(), []

    def check_message(message):
        if message.type in ("error", "warning"):
            problems.append(message.text)

    def check_request(request):
        if not request.url.startswith(("data:", "blob:", path.as_uri())):
            problems.append(request.url)

    page.on("console", check_message)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", check_request)
    page.goto(path.as_uri())
    page.wait_for_selector("#plot-roc .main-svg")
    yield page
    context.close()
    assert problems == []


def texts(page, selector: str) -> list[str]:
    return page.eval_on_selector_all(selector, "found => found.map(e => e.textContent.trim())")


def column(page, number: int) -> list[str]:
    """Return the texts of a column of the result table."""
    return texts(page, f"#result-table tbody tr > :nth-child({number + 1})")


def values(page, number: int) -> list[float]:
    """Return the values by which a column of the result table is sorted."""
    cells = f"#result-table tbody tr > :nth-child({number + 1})"
    return page.eval_on_selector_all(cells, "found => found.map(e => parseFloat(e.dataset.value))")


def cards(page) -> list[str]:
    """Return dataset and index of the cards listed, in their order."""
    return texts(page, "#cards .top > span:first-child")


def title(page) -> str:
    return page.inner_text("#viewer-title")


def is_dark(page) -> bool:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) < 200


def drawn(page, plot: str) -> bool:
    return page.locator(f"#plot-{plot} .main-svg").count() > 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_opens_from_disk_in_both_themes(browser, built_run, theme):
    with opened(browser, built_run / "report.html", color_scheme=theme) as page:
        # A path with a script in it has not changed the title.
        assert page.title() == "digits_ldm · 2026-11-23_20-30-00"
        for plot in ("roc", "histogram", "scatter", "stops", "seconds"):
            assert drawn(page, plot), plot
        text = page.inner_text("body")
        for shown in ("maps <b>&", "node1", "'a b.yaml'", "47 images"):
            assert shown in text, shown
        assert "photos 3" in page.text_content(".reasons")

        assert is_dark(page) == (theme == "dark")
        for expected in (theme == "light", theme == "dark"):
            page.click("#theme")
            assert is_dark(page) == expected
            assert drawn(page, "roc")


def test_a_table_is_sorted_by_mouse_and_by_keyboard(browser, built_run):
    with opened(browser, built_run / "report.html") as page:
        heading = page.locator("#result-table th", has_text="AUROC")
        heading.locator("button").click()
        assert values(page, 3) == sorted(values(page, 3), reverse=True)
        assert heading.get_attribute("aria-sort") == "descending"
        heading.locator("button").focus()
        page.keyboard.press("Enter")
        assert values(page, 3) == sorted(values(page, 3))
        assert heading.get_attribute("aria-sort") == "ascending"
        page.locator("#result-table th", has_text="Dataset").locator("button").click()
        assert column(page, 1) == sorted(column(page, 1))
        assert len(column(page, 1)) == 10


def test_the_table_shows_the_numbers_of_metrics_csv(browser, built_run):
    with opened(browser, built_run / "report.html") as page:
        names = zip(column(page, 0), column(page, 1), column(page, 2), strict=True)
        aurocs = [text.split()[0] for text in column(page, 3)]
        shown = dict(zip(names, aurocs, strict=True))
    for line in read_csv(built_run / "metrics.csv"):
        auroc = shown[line["group"], line["dataset"], line["score"]]
        assert auroc == f"{100 * float(line['auroc']):.2f}"


def test_the_gallery_filters_and_sorts(browser, built_run):
    frame, _ = read_scores(built_run)
    kept = frame[(frame["index"] < 12) & frame["error"].isna()]
    ind = frame[frame["dataset"] == "digits"]
    wrong = {}
    for score in ("dists", "msp"):
        accepted = kept[score] >= threshold_at_tpr(ind[score].to_numpy())
        wrong[score] = accepted != (kept["dataset"] == "digits")

    def names(lines) -> set[str]:
        return {f"{d} {i}" for d, i in zip(lines["dataset"], lines["index"], strict=True)}

    with opened(browser, built_run / "report.html") as page:
        counts = re.findall(r"\d+", page.inner_text("#gallery-count"))
        assert counts == ["47", str(wrong["dists"].sum())]
        page.click("#more")
        assert set(cards(page)) == names(kept)

        maps = kept["dataset"] == "maps <b>&"
        page.select_option("#filter-dataset", label="maps <b>&")
        assert set(cards(page)) == names(kept[maps])
        page.select_option("#filter-decision", "wrong")
        assert set(cards(page)) == names(kept[maps & wrong["dists"]])
        page.select_option("#gallery-score", label="msp")
        assert set(cards(page)) == names(kept[maps & wrong["msp"]])

        page.select_option("#filter-dataset", "")
        page.select_option("#filter-decision", "correct")
        page.select_option("#filter-class", label="one")
        assert set(cards(page)) == names(kept[(kept["prediction"] == 1) & ~wrong["msp"]])

        page.select_option("#filter-decision", "")
        page.select_option("#filter-class", "")
        page.select_option("#filter-dataset", label="letters")
        letters = kept[kept["dataset"] == "letters"]
        for order, ascending in (("low", True), ("high", False)):
            page.select_option("#gallery-order", order)
            ordered = letters.sort_values(["msp", "index"], ascending=[ascending, True])
            assert cards(page) == [f"letters {i}" for i in ordered["index"]]


def test_an_empty_gallery_has_a_line_that_explains_it(browser, tmp_path):
    folder = make_plain_run(tmp_path / "run", {"letters": "near"}, pictures=1)
    with opened(browser, build(read_results(folder))[-1]) as page:
        assert len(cards(page)) == 2
        page.select_option("#filter-dataset", label="letters")
        shown = page.evaluate("data.cards.find(c => c.dataset === 'letters').confusion[0] > 0")
        page.select_option("#filter-decision", "correct" if shown else "wrong")
        assert cards(page) == []
        assert page.inner_text("#gallery-count").startswith("No image")
        assert not page.locator("#more").is_visible()


def test_the_gallery_filters_by_classes_with_similar_names(browser, tmp_path):
    folder = make_plain_run(tmp_path / "run", {"letters": "near"}, pictures=6)
    names = ["two  spaces", "crane, bird", "crane, machine"]
    change_record(folder, class_names=names)
    with opened(browser, build(read_results(folder))[-1]) as page:
        for i, name in enumerate(names):
            page.select_option("#filter-class", label=name)
            assert set(cards(page)) == {f"ind {i}", f"ind {i + 3}"} | {
                f"letters {i}",
                f"letters {i + 3}",
            }
            assert name in page.text_content(".card .bottom")


def test_the_most_confusing_image_comes_first(browser, built_run):
    with opened(browser, built_run / "report.html") as page:
        found = page_data(built_run / "report.html")["cards"]
        worst = max(found, key=lambda card: card["confusion"][0])
        assert worst["confusion"][0] > 0
        assert cards(page)[0] == f"{worst['dataset']} {worst['index']}"


def test_an_image_is_enlarged_and_arrow_keys_lead_to_the_next(browser, built_run):
    with opened(browser, built_run / "report.html") as page:
        order = cards(page)
        page.locator("#cards button").nth(1).click()
        assert title(page).startswith(f"{order[1]}:")
        panels = ["input", "reconstruction", "unguided", "difference", "mask"]
        assert texts(page, "#viewer-panels span") == panels
        sizes = "images => images.map(image => [image.naturalWidth, image.clientWidth])"
        for natural, shown in page.eval_on_selector_all("#viewer-panels img", sizes):
            assert natural == 16
            assert shown > 100
        assert page.locator("#viewer-scores tbody tr").count() == 2

        page.keyboard.press("ArrowRight")
        assert title(page).startswith(f"{order[2]}:")
        page.keyboard.press("ArrowLeft")
        page.click("#previous")
        assert title(page).startswith(f"{order[0]}:")
        assert page.locator("#previous").is_disabled()
        page.keyboard.press("Escape")
        assert not page.locator("#viewer").is_visible()


def test_an_image_is_enlarged_by_keyboard_and_the_focus_stays_where_the_reader_left_off(
    browser, built_run
):
    with opened(browser, built_run / "report.html") as page:
        order = cards(page)
        page.locator("#cards button").nth(3).focus()
        page.keyboard.press("Enter")
        assert title(page).startswith(f"{order[3]}:")
        for _ in range(47):
            page.keyboard.press("ArrowRight")
        # Only 36 cards were listed before.
        assert page.inner_text("#viewer-position") == "47 of 47"
        page.keyboard.press("Escape")
        page.wait_for_function("document.activeElement.dataset.position === '46'")


def test_the_keyboard_leads_on_from_the_first_and_the_last_image(browser, built_run):
    """A button that becomes disabled loses the focus, and arrow keys would do nothing."""
    with opened(browser, built_run / "report.html") as page:
        order = cards(page)
        page.locator("#cards button").nth(1).click()
        page.focus("#previous")
        page.keyboard.press("Enter")
        assert title(page).startswith(f"{order[0]}:")
        assert page.evaluate(FOCUSED) == "next"
        page.keyboard.press("ArrowRight")
        assert title(page).startswith(f"{order[1]}:")

        for _ in range(44):
            page.keyboard.press("ArrowRight")
        page.focus("#next")
        page.keyboard.press("Enter")
        assert page.inner_text("#viewer-position") == "47 of 47"
        assert page.evaluate(FOCUSED) == "previous"
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#viewer-position") == "46 of 47"

        # A click on an image, which takes no focus.
        page.locator("#viewer-panels img").first.click()
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#viewer-position") == "45 of 47"


def test_another_score_is_drawn_on_request(browser, built_run):
    with opened(browser, built_run / "report.html") as page:
        axis = "#plot-histogram .xtitle"
        assert page.text_content(axis).startswith("dists")
        page.select_option("#plot-score", label="msp")
        assert page.text_content(axis).startswith("msp")
        assert not page.locator("#scatter").is_visible(), "MSP against MSP"
        page.select_option("#plot-scale", "log")
        scale = page.evaluate("document.getElementById('plot-roc').layout.xaxis.type")
        assert scale == "log"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_fits_the_width_of_a_phone(browser, built_run, theme):
    phone = {
        "viewport": {"width": 360, "height": 740},
        "color_scheme": theme,
        "device_scale_factor": 2,
        "has_touch": True,
    }
    with opened(browser, built_run / "report.html", **phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator("#cards button").first.tap()
        assert page.evaluate("document.getElementById('viewer').scrollWidth") <= 360
        assert page.locator("#viewer-panels img").first.bounding_box()["width"] > 120


def test_a_cascade_has_its_curve_on_the_page(browser, tmp_path):
    fusion, cascade = Fusion(["dists", "msp"]), Cascade("msp", 0.25, "fusion")
    combination = Combination.checked(fusion, cascade, ["dists"], ["msp"])
    datasets = ["digits", "calibration", "letters", "maps <b>&", "photos"]
    folder = make_run(tmp_path / "run", datasets=datasets, combination=combination)
    path = build(read_results(folder))[-1]
    for width in (1280, 360):
        with opened(browser, path, viewport={"width": width, "height": 800}) as page:
            assert drawn(page, "cascade-auroc")
            assert drawn(page, "cascade-fpr95")
            budgets = texts(page, "#cascade tbody tr > :first-child")
            assert budgets == [str(p.budget) for p in read_results(folder).cascade_curve]
            assert page.locator("#cascade tr.primary").inner_text().split()[0] == "0.25"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert "calibration" not in page.inner_text("#results")


def test_a_comparison_sorts_draws_differences_and_fits_a_phone(browser, pair, tmp_path):
    path = tmp_path / "all.html"
    main([str(pair.a), str(pair.b), str(pair.a), "--out", str(path)])
    with opened(browser, path) as page:
        heading = page.locator("#result-table th", has_text="AUROC").first
        heading.locator("button").click()
        assert values(page, 4) == sorted(values(page, 4), reverse=True)
        page.select_option("#plot-comparison", index=1)
        page.select_option("#plot-metric", "auroc-difference")
        traces = "document.getElementById('plot-intervals').data.map(trace => trace.x)"
        primary = page_data(path)["comparisons"][0]["differences"]["auroc"]
        assert [x[-1] for x in page.evaluate(traces)] == [value for value, _, _ in primary]
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
    with opened(browser, path, **phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_many_runs_of_one_dataset_stay_apart_from_those_of_the_next(browser, tmp_path):
    run = read_results(make_plain_run(tmp_path / "run", {"letters": "near", "photos": "far"}))
    runs = [run] * 12
    write_comparison_page(runs, compare(runs), tmp_path / "all.html")
    with opened(browser, tmp_path / "all.html") as page:
        for metric, count in (("auroc", 12), ("auroc-difference", 11)):
            page.select_option("#plot-metric", metric)
            traces = "document.getElementById('plot-intervals').data.map(trace => trace.y)"
            positions = page.evaluate(traces)
            assert len(positions) == count
            for n in range(2):
                assert all(abs(y[n] - n) < 0.45 for y in positions)
            height = page.locator("#plot-intervals").bounding_box()["height"]
            assert height / 2 / count >= 10, "pixels per run and dataset"
