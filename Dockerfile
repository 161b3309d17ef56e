# syntax=docker/dockerfile:1
# Images to train, evaluate and answer with; docs/pods.md shows their use.
#
#   docker build -t meerkat .                                  CPU
#   docker build -t meerkat:tpu --build-arg EXTRA=tpu .        TPU; likewise cuda12, cuda13
#
# Packages are installed in a stage of their own, into a virtual environment that is copied: what
# pip leaves behind stays there. All of them come as wheels, so no compiler is needed at all.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS packages
ARG EXTRA=""
WORKDIR /src
RUN python -m venv /venv
# Dependencies first, by an empty package: a change of code does not install them anew.
COPY pyproject.toml requirements.txt constraints.txt README.md LICENSE ./
RUN mkdir meerkat_jax && touch meerkat_jax/__init__.py \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt ".${EXTRA:+[$EXTRA]}"
COPY meerkat_jax meerkat_jax
RUN /venv/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:${PYTHON}-slim
# On GKE the TPU devices belong to root: build with --build-arg RUN_AS=root there.
ARG RUN_AS=meerkat
RUN useradd --create-home --uid 1000 meerkat \
    && mkdir /data /runs \
    && chown meerkat:meerkat /data /runs
COPY --from=packages /venv /venv
WORKDIR /app
COPY experiments experiments
COPY tools tools
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MEERKAT_CACHE=/data
USER ${RUN_AS}
ENTRYPOINT ["python", "-m"]
CMD ["meerkat_jax.train", "--help"]
