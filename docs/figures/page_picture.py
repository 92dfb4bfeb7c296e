"""Draw docs/images/report.png of the README: ``python docs/figures/page_picture.py RUN_DIR``.

The report page of a run in Chromium: its head in the light theme, plots and gallery in the dark.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FILE = Path(__file__).parents[1] / "images" / "report.png"
SIZE = {"width": 1180, "height": 1740}


def main(run: Path) -> None:
    both = Image.new("RGB", (2 * SIZE["width"], SIZE["height"]))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for i, (theme, section) in enumerate((("light", "top"), ("dark", "plots"))):
            page = browser.new_context(viewport=SIZE, color_scheme=theme).new_page()
            page.goto((run / "report.html").resolve().as_uri())
            page.wait_for_selector("#plot-roc .main-svg")
            if section != "top":
                page.evaluate(
                    f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})"
                )
            page.wait_for_timeout(500)  # plots and pictures are drawn when the browser is idle
            screenshot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            both.paste(screenshot, (i * SIZE["width"], 0))
        browser.close()
    both.resize((1534, 1131), Image.Resampling.LANCZOS).save(FILE, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
