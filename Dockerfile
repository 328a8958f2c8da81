# One file, two images:
#   docker build -t penstock .                                          CPU
#   docker build -t penstock:cuda --build-arg DEVICE=cuda .             CUDA: torch's wheels bring the CUDA libraries
# TORCH_INDEX is the package index that torch comes from, where it isn't pip's own. The CPU image stays slim only if
# it is given one with CPU builds of torch.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG DEVICE=cpu
ARG TORCH=torch>=2.11
ARG TORCH_INDEX=
RUN python -m venv /opt/penstock
ENV PATH=/opt/penstock/bin:$PATH
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
WORKDIR /src
COPY pyproject.toml README.md LICENSE penstock.py ./
COPY bench bench
COPY engine engine
COPY flywheel flywheel
COPY gateway gateway
COPY kernels kernels
COPY scheduler scheduler
RUN case "$DEVICE" in \
      cpu) pip install --no-cache-dir . ;; \
      cuda) pip install --no-cache-dir ".[gpu]" ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac

FROM python:${PYTHON}-slim
ARG DEVICE=cpu
# Numba's threads are torch's own only where Numba finds an OpenMP library. Triton compiles its launchers with a C
# compiler when it starts.
RUN apt-get update && \
    apt-get install -y --no-install-recommends libgomp1 $([ "$DEVICE" = cuda ] && echo gcc libc6-dev) && \
    rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/penstock /opt/penstock
RUN useradd --create-home --uid 10001 penstock
USER penstock
WORKDIR /home/penstock
ENV PATH=/opt/penstock/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["penstock"]
CMD ["serve", "--host", "0.0.0.0"]
