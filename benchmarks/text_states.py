"""Do a text encoder's token states tell the scene world's nouns apart, whatever the wording, and their places?

    python benchmarks/text_states.py [FOLDER]    # with text_encoder/ and tokenizer/; by default the bundled model

Over all nouns of one token, each read in "a <noun>": how many dimensions the states span (the exponential of the
entropy of their principal variances), the share that finds itself again inside other sentences by nearest
neighbour, and the share of one-token synonyms whose nearest noun is their own. Then, over all pairs in "a <noun>
<relation> a <noun>", the share of states from which a linear probe (ridge regression, fitted on other pairs) reads the
relation, for the first noun and for the second; chance is one in four.
"""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from snapgen.data.vocabulary import NOUNS
from snapgen.text.encoder import TransformersTextEncoder

BUNDLED = Path(__file__).parent.parent / "src" / "snapgen" / "bundled"
SENTENCES = ("a red {}", "there is a {} on a blue background", "two green {} and a cow")
RELATIONS = ("to the left of", "to the right of", "above", "below")
RIDGE = 1.0


def probed(states: Tensor, labels: Tensor) -> float:
    """The share of the last quarter of `states` (B D) whose `labels` (B) a linear probe of the others reads."""
    fitted = len(states) * 3 // 4
    inputs = F.pad(states.double(), (0, 1), value=1.0)
    known = inputs[:fitted]
    penalty = RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(known.T @ known + penalty, known.T @ F.one_hot(labels[:fitted]).double())
    return ((inputs[fitted:] @ weights).argmax(dim=1) == labels[fitted:]).double().mean().item()


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=BUNDLED)
    folder = parser.parse_args().folder
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = TransformersTextEncoder(
        AutoModel.from_pretrained(folder / "text_encoder", dtype=torch.float32), tokenizer
    )

    def one_token(word: str) -> bool:
        return len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1

    def states(sentence: str, words: list[str]) -> Tensor:
        """The state of each word in its place in `sentence`, B D."""
        place = 1 + sentence.split().index("{}")  # after the start token
        return encoder([sentence.format(word) for word in words]).states[:, place]

    nouns = [noun.name for noun in NOUNS if one_token(noun.name)]
    reference = states("a {}", nouns)
    variances = torch.linalg.svdvals(reference - reference.mean(dim=0)).square()
    shares = variances / variances.sum()
    own = torch.arange(len(nouns))
    pairs = [(noun.name, word) for noun in NOUNS if noun.name in nouns for word in noun.synonyms if one_token(word)]
    nearest = torch.cdist(states("a {}", [word for _, word in pairs]), reference).argmin(dim=1)
    couples = list(permutations(nouns, 2))
    order = torch.randperm(len(couples), generator=torch.Generator().manual_seed(0)).tolist()
    first, second = [], []
    for relation in RELATIONS:
        read = encoder([f"a {couples[index][0]} {relation} a {couples[index][1]}" for index in order]).states
        first.append(read[:, 2])  # after the start token and "a"
        second.append(read[:, 2 + len(relation.split()) + 2])
    # All relations of a pair together, so that the probe is tried on pairs that it has not seen
    labels = torch.arange(len(RELATIONS)).repeat(len(couples))
    read_at = [probed(torch.stack(place, dim=1).flatten(0, 1), labels) for place in (first, second)]
    report = {
        "nouns": len(nouns),
        "dimensions": torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()).item(),
        "found_in": {
            sentence: (torch.cdist(states(sentence, nouns), reference).argmin(dim=1) == own).float().mean().item()
            for sentence in SENTENCES
        },
        "synonyms": len(pairs),
        "synonyms_found": sum(nouns[index] == name for (name, _), index in zip(pairs, nearest, strict=True)),
        "relation_read_at_first": read_at[0],
        "relation_read_at_second": read_at[1],
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
