# mcjepa in a container: the versions of requirements.lock, a user without rights, CPU wheels of torch unless told otherwise.
#
#     docker build -t mcjepa .                                     CPU
#     docker build -t mcjepa --build-arg TORCH_BACKEND=cu126 .     GPU: any backend that `uv pip install --torch-backend` knows
#     docker run --rm -v "$PWD:/data" mcjepa quickstart --out /data/quickstart
#
# Training and fine-tuning hand batches over in /dev/shm: give `--shm-size 1g` where they have loading processes.
FROM python:3.11-slim-bookworm AS build
ARG TORCH_BACKEND=cpu
WORKDIR /source
COPY . .
RUN python -m venv /opt/mcjepa \
    && python -m pip install --no-cache-dir -c requirements.lock uv \
    && uv pip install --python /opt/mcjepa/bin/python --no-cache --compile-bytecode \
        --torch-backend "$TORCH_BACKEND" -c requirements.lock ".[samples]"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/mcjepa /opt/mcjepa
RUN useradd --create-home --uid 1000 mcjepa && mkdir /data && chown mcjepa:mcjepa /data
ENV PATH="/opt/mcjepa/bin:$PATH"
USER 1000
WORKDIR /data
ENTRYPOINT ["mcjepa"]
CMD ["--help"]
