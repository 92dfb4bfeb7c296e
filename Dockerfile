# diffguard-pl for a CPU or, with DEVICE=cuda, for a GPU: docs/how-to/container.md
#
#   docker build -t diffguard-pl .
#   docker build -t diffguard-pl:cuda --build-arg DEVICE=cuda .

FROM python:3.12.12-slim-bookworm AS build
ARG DEVICE=cpu
ARG EXTRAS=demo,timm
WORKDIR /source
COPY . .
# PyTorch on PyPI requires CUDA's libraries, 2.5 GB; PyTorch's own index has builds without them.
# The last line fails where pip took other builds, because an index could not be reached.
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$DEVICE" in \
        cpu) export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ;; \
        cuda) ;; \
        *) echo "DEVICE=$DEVICE: must be cpu or cuda" >&2; exit 1 ;; \
    esac \
    && python -m venv /opt/diffguard \
    && /opt/diffguard/bin/pip install -c constraints.txt ".[$EXTRAS]" \
    && /opt/diffguard/bin/python -c \
        "import torch, torchvision; assert bool(torch.version.cuda) == ('$DEVICE' == 'cuda')"

FROM python:3.12.12-slim-bookworm
COPY --from=build /opt/diffguard /opt/diffguard
# Downloads go to the volume /cache, runs to /work. Every user may write to both, so that
# `docker run --user` can give the files of a run the owner of a mounted folder.
ENV PATH=/opt/diffguard/bin:$PATH \
    XDG_CACHE_HOME=/cache \
    MPLCONFIGDIR=/cache/matplotlib
RUN useradd --create-home --uid 1000 diffguard \
    && install --directory --mode=1777 /cache /cache/matplotlib /work
USER 1000
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["diffguard-pl"]
CMD ["test"]
