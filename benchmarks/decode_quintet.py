"""Our side of decode.py: the parameters of a folder, greedy rows of tokens."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from turns import cpu_seconds, say

from model.decode import Decoder
from model.generate import generate
from model.hf import read_params
from model.hf_config import read_config
from model.sample import Sampling


def main() -> None:
    folder, prompt, tokens = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    config = read_config(folder)
    decoder = Decoder(config, read_params(folder, config), prompt + tokens)
    say(parameters=config.num_parameters, versions=f"jax {jax.__version__}")
    for line in sys.stdin:
        cpu = cpu_seconds()
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, (int(line), prompt)).tolist()
        times, steps = [time.perf_counter()], []
        for ids in generate(decoder, prompts, max_tokens=tokens, sampling=Sampling(temperature=0)):
            times.append(time.perf_counter())
            steps.append(ids)
        since = [moment - times[0] for moment in times[1:]]
        say(ids=list(zip(*steps)), times=since, cpu=cpu_seconds() - cpu)


if __name__ == "__main__":
    main()
