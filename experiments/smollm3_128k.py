"""SmolLM3-3B read at 128k tokens: YaRN with factor 2 over the 64k that it was trained with, no training.

    python launch.py --config=experiments/smollm3_128k.py import --config.start.folder=DIR --workdir=runs/smollm3
    python launch.py --config=experiments/smollm3_128k.py serve --config.start.folder=DIR --workdir=runs/smollm3

DIR is the published folder: config.json, safetensors and tokenizer.json. In float32, as imported, the model needs
12.3 GB, and a row of 128k tokens 9.7 GB of cache in bfloat16. `--config.eval.context=8192` asks for less.

Expected time: a minute for the import; see docs/benchmarks/transformer.md.
Expected result: 3,075,098,624 parameters. No published weights were at hand: what was run has random ones.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the folder."""
    config = ConfigDict()
    config.start = ConfigDict()
    config.start.folder = ""
    config.model = ConfigDict()
    config.model.dtype = "bfloat16"
    config.model.rope_scaling = ConfigDict()
    config.model.rope_scaling.kind = "yarn"
    config.model.rope_scaling.factor = 2.0
    config.model.rope_scaling.original_length = 65_536
    config.tokenizer = ConfigDict()
    config.batch = ConfigDict()
    config.batch.row_length = 131_072  # the cache of generate and serve, unless eval.context says otherwise
    config.train = ConfigDict()
    config.train.steps = 1  # not trained here
    return config.lock()
