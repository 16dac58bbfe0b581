"""What the chat stage of experiments/chat.py taught: held-out bits per byte, and whether the mode is kept.

    python benchmarks/chat_modes.py --workdir=runs/chat

For every checkpoint that is kept: bits per byte of held-out texts and of what the assistant says in held-out
conversations, and in how many of these the likeliest first token of the answer opens a thought, of those that ask for
one and of those that say /no_think.
"""

import argparse
from pathlib import Path

import numpy as np

import launch
from data.document import read_documents
from data.tokenize import CHAT_DATE, open_chat_template, open_split, open_tokenizer
from evals import perplexity
from evals.evaluate import token_measure
from model.decode import Decoder
from model.generate import generate
from model.sample import Sampling
from train.checkpoint import Checkpoints
from train.run import load_params

MOST = 40  # conversations that are answered


def main(config: str, workdir: Path) -> None:
    experiment = launch.open_experiment(
        launch.parse_arguments(["eval", f"--config={config}", f"--workdir={workdir}"])
    )
    run, shards = experiment.training, open_split(workdir, "heldout")
    sources = [shards.source(document) for document in range(len(shards))]
    asked = questions(workdir)
    thought = open_tokenizer(workdir).special_tokens["<think>"]
    print("step\ttext\tchat\topens a thought: /think\t/no_think")
    for step in Checkpoints(workdir / "train" / "checkpoints").steps:
        params, _ = load_params(run, workdir, exactly=step)
        nats = token_measure(experiment.parts["eval"], run)(params, shards)
        bits = dict(perplexity.by_source(sources, shards.predicted_bytes, nats))
        prompts = [ids for ids, _ in asked]
        decoder = Decoder(run.model, params, run.row_length)
        (first,) = generate(decoder, prompts, max_tokens=1, sampling=Sampling(temperature=0))
        opens, thinks = np.array(first) == thought, np.array([mode for _, mode in asked])
        shown = (f"{opens[own].sum()} of {own.sum()}" for own in (thinks, ~thinks))
        print(step, *(f"{bits[name]['bits_per_byte']:.3f}" for name in ("text", "chat")), *shown, sep="\t")


def questions(workdir: Path) -> list[tuple[list[int], bool]]:
    """First questions of held-out conversations up to where the assistant answers, and whether it is to think."""
    tokenizer, template, found = open_tokenizer(workdir), open_chat_template(workdir, CHAT_DATE), []
    for document in read_documents(workdir / "curated" / "heldout-00000.parquet"):
        if document.source == "chat" and len(found) < MOST:
            messages = document.meta["messages"]
            text = template.render(messages[:2], add_generation_prompt=True)
            found.append((tokenizer.encode(text, special=True), "/no_think" not in messages[0]["content"]))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="experiments/chat.py")
    parser.add_argument("--workdir", type=Path, default=Path("runs/chat"))
    main(**vars(parser.parse_args()))
