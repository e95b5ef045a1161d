# docker build -t qdq . && docker run --rm -v "$PWD:/work" qdq quantize model.onnx -o model.int8.onnx --data samples/
#
# Linted, but not built yet: the project's machines have no container runtime.
FROM python:3.12-slim AS build
# Debian keeps one version of a package: a pinned one is gone with the next update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY constraints/test.txt /tmp/constraints.txt
COPY --from=build /wheels /wheels
RUN wheel=$(ls /wheels/qdq-*.whl) \
    && python -m pip install --no-cache-dir -c /tmp/constraints.txt "qdq[all] @ file://$wheel" \
    && rm -rf /wheels /tmp/constraints.txt \
    && useradd --create-home --uid 1000 qdq
USER 1000
WORKDIR /work
ENTRYPOINT ["qdq"]
CMD ["--help"]
