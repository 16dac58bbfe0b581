"""Continued pretraining of a model that exists: here of what the quickstart exported, on the same text.

    python launch.py import --config=experiments/continual.py --workdir=runs/continual
    python launch.py generate --config=experiments/continual.py --workdir=runs/continual --prompt="def main("
    python launch.py --config=experiments/continual.py --workdir=runs/continual

The first line reads the folder, the second looks at the model, the third trains on and exports. Any folder of a
SmolLM2, SmolLM3, Llama, Monad, Baguettotron, Qwen 3, Gemma 2 or Mistral model takes the quickstart's place with
`--config.start.folder=DIR`, and your documents that of the default text with `--config.data.path=DIR`. Shape and
tokenizer are the folder's; what stands under `config.model` here would change them (`dtype`, `rope_scaling`, ...).

Its learning rate, rows and steps are for the quickstart's model; one of 100M parameters wants 1e-4 and longer rows.

Expected time: 1 minute on two CPU cores.
Expected result: better than the 1.543 bits per byte that the quickstart ended with, by little: its learning rate had
decayed, and a second warmup costs some of what it brings.
Measured 2026-11-21 (Python 3.11.7, jax 0.10.2, two cores of an AMD EPYC): 1.522.
"""

from ml_collections import ConfigDict

from experiments import quickstart


def get_config() -> ConfigDict:
    """The quickstart's data, another start."""
    config = quickstart.get_config()
    with config.unlocked():
        config.start = ConfigDict()
        config.start.folder = "runs/quickstart/export"  # a Hugging Face folder: config.json, safetensors, tokenizer
        config.model = ConfigDict()  # nothing but what shall differ from the folder
        config.tokenizer = ConfigDict()
        config.optim.learning_rate = 2e-3
        config.optim.decay_fraction = 0.8
        config.train.steps = 300
        config.train.eval_every = 100
        config.train.checkpoint_every = 100
    return config
