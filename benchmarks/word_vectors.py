"""Makes the word vectors that the package ships, from SmolLM2-135M-Instruct.

    python -m benchmarks.word_vectors

Words are the vocabulary's tokens that begin with a space and hold lower-case or capital letters alone, three or more;
the most frequent ones are kept. Each stands alone after the first token of a text.
"""

import re

import numpy as np
import torch

from rim_lens import load_model
from rim_lens.behavior.word_vectors import FILE, WordVectors

WORDS, DIRECTIONS, BLOCKS = 10_000, 64, 10
BATCH = 256


@torch.no_grad()
def main() -> None:
    model = load_model("smollm2-135m-instruct", device="cpu")
    tokens: dict[str, int] = {}
    for token, number in sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if re.fullmatch("Ġ[A-Za-z]{3,}", token) and (token[1:].islower() or token[1:].lower() not in tokens):
            tokens[token[1:].lower()] = number
    words = sorted(tokens, key=lambda word: tokens[word])[:WORDS]
    first = model.tokenizer.bos_token_id
    states = []
    for start in range(0, len(words), BATCH):
        ids = torch.tensor([[first, tokens[word]] for word in words[start : start + BATCH]])
        states.append(
            model.hf.model(input_ids=ids, output_hidden_states=True).hidden_states[BLOCKS][:, 1].float().numpy()
        )
    table = np.concatenate(states).astype(float)
    left, _, _ = np.linalg.svd(table - table.mean(0), full_matrices=False)
    vectors = left[:, :DIRECTIONS] / np.linalg.norm(left[:, :DIRECTIONS], axis=1, keepdims=True)
    WordVectors(tuple(words), vectors).save()
    print(f"{len(words)} words, {FILE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
