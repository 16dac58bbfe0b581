"""The peer's side of cpu_throughput.py: SmolLM3ForCausalLM in PyTorch eager. Imports nothing of ours."""

import json
import os
import sys
import time

import torch
import transformers


def main() -> None:
    given = json.loads(sys.argv[1])
    model, batch = given["model"], given["batch"]
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    every = model.get("no_rope_every", 4)
    config = transformers.SmolLM3Config(
        vocab_size=model["vocab_size"],
        hidden_size=model["d_model"],
        intermediate_size=model["d_ff"],
        num_hidden_layers=model["num_layers"],
        num_attention_heads=model["num_heads"],
        num_key_value_heads=model["num_kv_heads"],
        head_dim=model["head_dim"],
        no_rope_layers=[int((i + 1) % every != 0) for i in range(model["num_layers"])],
        max_position_embeddings=batch["row_length"],
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        attn_implementation="sdpa",
    )
    network = transformers.SmolLM3ForCausalLM(config).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(0, model["vocab_size"], (batch["rows"], batch["row_length"]))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        network(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    for _ in range(2):
        step()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(json.dumps({"parameters": parameters, "versions": versions}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
