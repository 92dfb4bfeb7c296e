"""Makes docs/images/report.png: the report page of a run in Chromium, its head in light, plots and gallery in dark.

python recipes/page_picture.py RUN_DIR
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "report.png"
SIZE = {"width": 1180, "height": 1740}


def main(run: Path) -> None:
    halves = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for theme, section in (("light", "top"), ("dark", "plots")):
            page = browser.new_context(viewport=SIZE, color_scheme=theme).new_page()
            page.goto((run / "report.html").resolve().as_uri())
            page.wait_for_selector("#plot-roc .main-svg")
            if section != "top":
                page.evaluate(
                    f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})"
                )
            page.wait_for_timeout(500)  # plots and pictures are drawn when the browser has time
            halves.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        browser.close()
    both = Image.new("RGB", (2 * SIZE["width"], SIZE["height"]))
    for i, half in enumerate(halves):
        both.paste(half, (i * SIZE["width"], 0))
    both.resize((1534, 1131), Image.Resampling.LANCZOS).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
