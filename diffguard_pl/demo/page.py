"""The page, in Gradio, and the server below it."""

import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from ..deploy.detector import Detector
from .request_filter import Door
from .upload import FORMATS, Limits
from .verdict import EMPTY, answer

HERE = Path(__file__).parent
WAITING = 20
"""Uploads that may wait for their turn; they are judged one after the other."""
KEPT = 600
"""Seconds after which uploads are deleted; all of them are when the server ends."""

HEAD = """<header class="dg-head"><h1>Does the classifier know this?</h1><p>Reconstructed under the label that the classifier gives
it, an image of a known class comes back as it was, and any other as something else.</p></header>"""


def page(detector: Detector, examples: Mapping[str, list[Path]], limits: Limits) -> gr.Blocks:
    """Image on the left, verdict on the right.

    Args:
        detector: calibrated.
        examples: files to begin with, in named groups; none: the detector is not of digits, and its images have no negative.
        limits: of uploads.
    """

    def judge(upload: dict[str, Any] | None, invert: bool) -> str:
        # not decoded by Gradio, which asks nobody how many pixels there are
        path = Path(upload["path"]) if upload and upload.get("path") else None
        return answer(
            detector, path, (upload or {}).get("orig_name") or "the image", invert, limits
        )

    with gr.Blocks(
        title="DiffGuard", analytics_enabled=False, delete_cache=(KEPT // 10, KEPT)
    ) as blocks:
        gr.HTML(HEAD)
        image = gr.Image(
            label="Image",
            type="filepath",
            sources=["upload", "clipboard"],
            height=300,
            elem_id="dg-input",
            buttons=[],
            placeholder="Drop an image, or click",
            render=False,
        )
        if examples:
            with gr.Row(elem_id="dg-examples", equal_height=False):
                for group, files in examples.items():
                    with gr.Column(min_width=240):
                        gr.Examples(
                            [str(file) for file in files],
                            image,
                            label=group,
                            examples_per_page=len(files),
                        )
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                image.render()
                invert = gr.Checkbox(
                    label="Invert",
                    info="For dark ink on a light page: the detector knows light on dark.",
                    visible=bool(examples),
                    elem_id="dg-invert",
                )
            with gr.Column(min_width=280):
                result = gr.HTML(EMPTY, elem_id="dg-result")
        gr.HTML(f'<p class="dg-foot">{_about(detector, limits)}</p>')
        gr.on(
            [image.change, invert.change],
            judge,
            [image, invert],
            result,
            preprocess=False,
            api_visibility="private",
            trigger_mode="always_last",
            show_progress="minimal",
        )
    return blocks.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)


def _about(detector: Detector, limits: Limits) -> str:
    assert detector.calibrated is not None
    rejected = 100 * (1 - detector.tpr)
    return (
        f"About {rejected:.3g} % of known images are rejected: {len(detector.calibration)} of them set the threshold. "
        f"{', '.join(FORMATS)}; up to {limits.megabytes:g} MB and {limits.megapixels:g} megapixels. "
        "Images stay on the machine that runs this page and are deleted within minutes."
    )


def serve(blocks: gr.Blocks, listener: socket.socket, limits: Limits, uploads: Path) -> None:
    """Serve the page until a signal ends it.

    Args:
        blocks: the page.
        listener: bound socket.
        limits: of uploads.
        uploads: folder that Gradio writes them to.
    """
    # fonts of the reader's machine: none is fetched
    sans, mono = (
        ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        ["ui-monospace", "monospace"],
    )
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        "/",
        footer_links=[],
        run_history=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        max_file_size=int(limits.megabytes * 2**20),
        show_error=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gr.themes.Base(font=sans, font_mono=mono, neutral_hue="stone", primary_hue="blue"),
        css_paths=HERE / "page.css",
        head=f"<script>{(HERE / 'page.js').read_text()}</script>",
    )
    config = uvicorn.Config(Door(app, uploads), log_level="warning", timeout_graceful_shutdown=1)
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(
            logging.CRITICAL
        )  # open pages are cut off, which is no error
        await super().shutdown(sockets)
