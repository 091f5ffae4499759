"""What do a text encoder's token states say of scenes, in a form that one cross-attention can read?

    python benchmarks/text_states.py [FOLDER]    # with text_encoder/ and tokenizer/; by default the bundled model

FOLDER may also hold one text model of transformers with its tokenizer, a CLIP's for example.

`answers`: a reader (`snapgen.models.reader`: one attention and a linear layer a kind of question) learns, on frozen
states, to answer questions about scenes; these are the shares that it answers right about held-out compositions, in
held-out sentences too.

The rest is about single words. Over all nouns of one token, each read in "a <noun>": how many dimensions the states
span (the exponential of the entropy of their principal variances), the share that finds itself again inside other
sentences by nearest neighbour, and the share of one-token synonyms whose nearest noun is their own. Then, over all
pairs in "a <noun> <relation> a <noun>", the share of states from which a linear probe (ridge regression, fitted on
other pairs) reads the relation, for the first noun and for the second; chance is one in four.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from snapgen.models.reader import Reader, answer_loss, right_answers
from snapgen.pipeline.bundled import bundled_folder
from snapgen.text.encoder import TransformersTextEncoder
from snapgen.text.load import load_text_encoders
from snapgen.world.questions import choices, encode_questions, subjects
from snapgen.world.source import SceneSettings, SceneSource
from snapgen.world.vocabulary import NOUNS

SENTENCES = ("a red {}", "there is a {} on a blue background", "two green {} and a cow")
RELATIONS = ("to the left of", "to the right of", "above", "below")
RIDGE = 1.0
BATCH = 128  # captions a step of the reader
HELDOUT = 1024  # scenes that it is asked about


def probed(states: Tensor, labels: Tensor) -> float:
    """The share of the last quarter of `states` (B D) whose `labels` (B) a linear probe of the others reads."""
    fitted = len(states) * 3 // 4
    inputs = F.pad(states.double(), (0, 1), value=1.0)
    known = inputs[:fitted]
    penalty = RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(known.T @ known + penalty, known.T @ F.one_hot(labels[:fitted]).double())
    return ((inputs[fitted:] @ weights).argmax(dim=1) == labels[fitted:]).double().mean().item()


def read_answers(encoder: TransformersTextEncoder, nouns: Sequence[str], steps: int) -> dict[str, float]:
    """The share of questions of each kind that a reader of frozen states answers right, after `steps`."""
    torch.manual_seed(0)
    settings = SceneSettings(count=steps * BATCH)
    source, heldout = SceneSource(settings), SceneSource(settings.validation(HELDOUT))
    answers = {str(kind): len(given) for kind, given in choices(nouns).items()}
    reader = Reader(encoder.width, len(subjects(nouns)), answers)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)

    def asked(source: SceneSource, indices: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits and truth by kind."""
        questions = encode_questions([source.scene(index) for index in indices], nouns)
        text = encoder([source.caption(index, 0) for index in indices]).trimmed()
        logits = reader(text.states, text.mask, {kind: question[:2] for kind, question in questions.items()})
        return logits, {kind: question[2] for kind, question in questions.items()}

    for step in track(range(steps), "learning to read frozen states"):
        logits, truth = asked(source, range(step * BATCH, (step + 1) * BATCH))
        optimizer.zero_grad()
        torch.stack([answer_loss(logits[kind], truth[kind]) for kind in logits]).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        logits, truth = asked(heldout, range(HELDOUT))
    return {kind: right_answers(logits[kind], truth[kind]).float().mean().item() for kind in logits}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=bundled_folder())
    parser.add_argument("--steps", type=int, default=1000, help="of the reader, 128 captions each")
    options = parser.parse_args()
    components = load_text_encoders([str(options.folder)], torch.float32)
    tokenizer = components["tokenizer"]
    encoder = TransformersTextEncoder(
        components["text_encoder"], tokenizer, max_length=min(tokenizer.model_max_length, 77), warn=False
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
        "answers": read_answers(encoder, [noun.name for noun in NOUNS], options.steps),
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
