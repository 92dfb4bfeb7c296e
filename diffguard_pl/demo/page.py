"""The demo's page, in Gradio, and the server behind it."""

import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from ..datamodules.reading import FORMATS
from ..deploy.detector import Detector
from ..web.hosts import AllowedHosts
from ..web.limits import Limits
from .request_filter import Accepts, RequestFilter, is_below, is_flag, is_upload_or_none
from .verdict import EMPTY, answer_html

HERE = Path(__file__).parent
MAX_QUEUED = 20
"""Number of uploads that may wait; they are judged one at a time."""
UPLOAD_LIFETIME = 600
"""Seconds after which an upload is deleted. All are deleted when the server ends."""
SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
"""Fonts of the visitor's machine, so that none is downloaded."""

HEAD = """<header class="dg-head"><h1>Does the classifier know this?</h1><p>Reconstructed under
the predicted label, an image of a known class comes back almost unchanged, any other as something
else.</p></header>"""


def page(detector: Detector, examples: Mapping[str, list[Path]], limits: Limits) -> gr.Blocks:
    """Build the page: the image on the left, the verdict on the right.

    Args:
        detector: Calibrated detector.
        examples: Example images by the heading of their group. Empty for a detector of other
            images than digits, whose page has no box to invert colours either.
        limits: Limits on uploads.
    """

    def judge(upload: dict[str, Any] | None, invert: bool) -> str:
        upload = upload or {}
        path = Path(upload["path"]) if upload.get("path") else None
        name = upload.get("orig_name") or "the image"
        return answer_html(detector, path, name, invert, limits)

    blocks = gr.Blocks(
        title="DiffGuard",
        analytics_enabled=False,
        delete_cache=(UPLOAD_LIFETIME // 10, UPLOAD_LIFETIME),
    )
    with blocks:
        gr.HTML(HEAD)
        image = gr.Image(
            label="Image",
            type="filepath",
            sources=["upload", "clipboard"],
            height=300,
            elem_id="dg-input",
            buttons=[],
            placeholder="Drop an image here, or click to choose one",
            render=False,
        )
        if examples:
            _add_examples(examples, image)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                image.render()
                invert = gr.Checkbox(
                    label="Invert colours",
                    info="For dark ink on a light page: the detector expects light on dark.",
                    visible=bool(examples),
                    elem_id="dg-invert",
                )
            with gr.Column(min_width=280):
                result = gr.HTML(EMPTY, elem_id="dg-result")
        gr.HTML(f'<p class="dg-foot">{_footer(detector, limits)}</p>')
        gr.on(
            [image.change, invert.change],
            judge,
            [image, invert],
            result,
            preprocess=False,  # Gradio would decode images without a limit on their pixels
            api_visibility="private",
            trigger_mode="always_last",
            show_progress="minimal",
        )
    return blocks.queue(max_size=MAX_QUEUED, default_concurrency_limit=1, api_open=False)


def _add_examples(examples: Mapping[str, list[Path]], image: gr.Image) -> None:
    with gr.Row(elem_id="dg-examples", equal_height=False):
        for heading, files in examples.items():
            with gr.Column(min_width=240):
                paths = [str(file) for file in files]
                gr.Examples(paths, image, label=heading, examples_per_page=len(paths))


def _footer(detector: Detector, limits: Limits) -> str:
    rejected = 100 * (1 - detector.tpr)
    return (
        f"About {rejected:.3g} % of known images are rejected; the threshold was set on "
        f"{len(detector.calibration)} of them. Formats: {', '.join(FORMATS)}, up to "
        f"{limits.megabytes:g} MB and {limits.megapixels:g} megapixels. Images stay on the machine "
        "that serves this page and are deleted within minutes."
    )


def _accepted_inputs(blocks: gr.Blocks) -> dict[int, list[Accepts]]:
    """Return for each function of the page which inputs it takes."""
    return {
        number: [_accepts(component) for component in function.inputs]
        for number, function in blocks.fns.items()
    }


def _accepts(component: Any) -> Accepts:
    if isinstance(component, gr.Dataset):
        return is_below(len(component.samples))
    return is_flag if isinstance(component, gr.Checkbox) else is_upload_or_none


def serve(
    blocks: gr.Blocks,
    listener: socket.socket,
    hosts: AllowedHosts,
    limits: Limits,
    uploads: Path,
) -> None:
    """Serve the page until a signal ends it.

    Args:
        blocks: The page.
        listener: Bound socket.
        hosts: Hosts under which the page may be requested.
        limits: Limits on uploads.
        uploads: Folder that Gradio writes uploads to.
    """
    no_docs = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = gr.mount_gradio_app(
        FastAPI(**no_docs),  # type: ignore[arg-type]
        blocks,
        "/",
        footer_links=[],
        run_history=False,
        app_kwargs=no_docs,
        max_file_size=int(limits.megabytes * 2**20),
        show_error=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gr.themes.Base(font=SANS, font_mono=MONO, neutral_hue="stone", primary_hue="blue"),
        css_paths=HERE / "page.css",
        head=f"<script>{(HERE / 'page.js').read_text('utf-8')}</script>",
    )
    # what it has to say of invalid requests is in the responses
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    guarded = RequestFilter(app, uploads, hosts, limits, _accepted_inputs(blocks))
    config = uvicorn.Config(guarded, log_level="warning", timeout_graceful_shutdown=1)
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Server that does not report the connections it closes at its end as errors."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
