"""The peer's side of decode.py: `transformers.generate`, greedy. Imports nothing of Quintet."""

import os
import sys
import time

import numpy as np
import torch
import transformers
from turns import cpu_seconds, say


class Clock(transformers.StoppingCriteria):
    """Notes when every token was there; stops nothing."""

    def __init__(self):
        self.times = [time.perf_counter()]

    def __call__(self, input_ids, *_, **__) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def main() -> None:
    folder, prompt, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(os.cpu_count())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    say(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
    )
    for line in sys.stdin:
        cpu = cpu_seconds()
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (int(line), prompt))
        ids_BT, clock = torch.tensor(ids), Clock()
        out_BT = model.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=tokens, do_sample=False, top_k=None,
            stopping_criteria=[clock],
        )  # fmt: skip
        times = clock.times
        assert len(times) == tokens + 1
        say(
            ids=out_BT[:, prompt:].tolist(),
            times=[moment - times[0] for moment in times[1:]],
            cpu=cpu_seconds() - cpu,
        )


if __name__ == "__main__":
    main()
