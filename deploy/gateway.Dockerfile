# The gateway: the wheel with its extras, run by an unprivileged user that can write nowhere.
#   docker build --file deploy/gateway.Dockerfile --tag vizwiz-gateway .
FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY gateway gateway
RUN python3 -m pip wheel --no-deps --no-cache-dir --wheel-dir /wheel .

FROM python:3.12-slim
COPY --from=wheel /wheel /tmp/wheel
# heic: the photos of iPhones
RUN python3 -m pip install --no-cache-dir "$(echo /tmp/wheel/*.whl)[gateway,heic]" && rm -r /tmp/wheel
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2
USER 1000:1000
EXPOSE 8080
ENTRYPOINT ["vizwiz-gateway", "--host=0.0.0.0"]
