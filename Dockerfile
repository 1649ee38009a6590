# syntax=docker/dockerfile:1
# The command and the page with the shipped model, on CPUs; docs/web.md shows how to run it.
# MLflow's server for docker-compose.yml is the stage `mlflow`.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# An index whose torch is built for CPUs alone: that of PyPI brings gigabytes of CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /opt/cabm
ENV PATH=/opt/cabm/bin:$PATH
COPY constraints.txt /src/
RUN pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" --constraint /src/constraints.txt torch
COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[web,heic]"

FROM ${BASE} AS mlflow
RUN python3 -m venv /opt/mlflow
ENV PATH=/opt/mlflow/bin:$PATH
COPY constraints.txt /tmp/
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt mlflow boto3==1.43.117 "psycopg[binary]==3.3.9" \
    && useradd --uid 1000 --create-home mlflow
USER 1000
WORKDIR /home/mlflow
EXPOSE 5000
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]

FROM ${BASE}
COPY --from=build /opt/cabm /opt/cabm
# Compiled loops are kept in the cache folder, by anybody: `docker run --user` names whose files are upscaled.
ENV PATH=/opt/cabm/bin:$PATH XDG_CACHE_HOME=/var/cache/cabm
RUN useradd --uid 1000 --create-home cabm && install --directory --mode 1777 /var/cache/cabm /images
USER 1000
WORKDIR /images
EXPOSE 7860
# A container that runs another command than the page is healthy while it runs.
HEALTHCHECK --start-period=60s CMD ["python3", "-c", "import pathlib, urllib.request as r; b'web' not in pathlib.Path('/proc/1/cmdline').read_bytes().split(b'\\0') or r.urlopen('http://127.0.0.1:7860', timeout=9)"]
ENTRYPOINT ["cabm"]
CMD ["web", "--host", "0.0.0.0", "--port", "7860", "--max-pixels", "4000000", "--max-upload", "20"]
