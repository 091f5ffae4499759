"""The `text` stage: trains the miniature's own text encoder to read; later stages use it frozen.

A small bidirectional transformer (BERT's) learns two things at once. It answers questions about the scene (what colour
is the dog, what is on the left), each with one attention over its token states. The UNet reads the states the same way,
so the state at a noun learns to carry what the caption says of that noun. It also matches captions with pictures and
with other wordings, as CLIP does, so that synonyms come together and the miniature has a CLIP score. Every scene comes
with a twin that differs in one stated attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    BertConfig,
    ConvNextConfig,
    PreTrainedTokenizerFast,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from snapgen.config import Recipe, RecipeError, Settings
from snapgen.models.reader import Reader, answer_loss, right_answers, unit_rms
from snapgen.pictures import contact_sheet, to_tensor, to_uint8
from snapgen.text.tokenizer import train_tokenizer
from snapgen.train.stage import Context, Stage
from snapgen.world.questions import choices, encode_questions, subjects
from snapgen.world.scene import Scene
from snapgen.world.source import SceneSettings, SceneSource
from snapgen.world.vocabulary import NOUNS

VALIDATION_COUNT = 128  # scenes, from the end of the source; each comes with its twin
HELDOUT_COUNT = 1024  # scenes of held-out compositions, also in held-out sentences, for the questions


class TextModel(Settings):
    """Shape of the text transformer and of the picture encoder that is trained with it."""

    width: int = Field(default=256, gt=0)  # of the token states
    layers: int = Field(default=4, ge=2)
    heads: int = Field(default=4, gt=0)
    max_length: int = Field(default=32, gt=4)  # tokens
    picture_widths: tuple[int, ...] = (48, 96, 192)  # ConvNeXt: stride 4, then 2 per stage
    picture_depths: tuple[int, ...] = (1, 1, 2)


class TextRecipe(Recipe):
    """Settings of the `text` stage."""

    stage: Literal["text"]
    model: TextModel = TextModel()
    data: SceneSettings  # its resolution is the picture encoder's input size
    tokenizer_captions: int = Field(default=20_000, gt=0)  # captions that the tokenizer is trained on
    vocabulary_size: int = Field(default=1000, ge=100)  # at most
    # Largest standard deviation of the noise added to states (of unit RMS) when they are read; each caption gets a
    # random amount from 0 to this. Answers that must survive the noise take up more of the states. It falls to 0 during
    # training: a reader that cannot trust what it sees falls back on what usually goes together.
    state_noise: float = Field(default=0.0, ge=0)
    questions: float = Field(default=1.0, ge=0)  # weight of their loss; matching pictures and wordings has weight 1


@dataclass(frozen=True)
class Batch:
    """Scenes, each followed by its twin, with two wordings of each."""

    scenes: list[Scene]  # B
    pictures: Tensor  # B 3 H W
    ids: Tensor  # 2B N, first all captions, then their second wordings
    attention: Tensor  # 2B N
    questions: dict[str, tuple[Tensor, Tensor, Tensor]]  # about the 2B captions; see `encode_questions`
    noise: float = 0.0  # the most that is added to their states


class TextTeacher(nn.Module):
    """The text encoder with what teaches it: a picture encoder, and a reader that asks questions.

    Word and position embeddings both start at standard deviation 1, not at BERT's 0.02. The states then keep the word
    that they began with, and learn early which word stands where.
    """

    def __init__(self, encoder: VisionTextDualEncoderModel, reader: Reader):
        super().__init__()
        self.encoder = encoder
        self.reader = reader
        embeddings = encoder.text_model.embeddings
        nn.init.normal_(embeddings.word_embeddings.weight, std=1.0)
        nn.init.normal_(embeddings.position_embeddings.weight, std=1.0)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """How well captions match pictures and wordings, and their answers to the questions.

        Temperature-scaled cosine similarities of captions x pictures and captions x second wordings (both B B), and
        the logits of the answers by kind, read from states that carry the batch's noise.
        """
        output = self.encoder(input_ids=batch.ids, pixel_values=batch.pictures, attention_mask=batch.attention)
        captions, wordings = output.text_embeds.chunk(2)
        scale = self.encoder.logit_scale.exp()
        states = unit_rms(output.text_model_output.last_hidden_state)
        if batch.noise:
            amount = batch.noise * torch.rand(len(states), 1, 1, device=states.device)  # the loop seeds every step
            states = states + amount * torch.randn_like(states)
        asked = {kind: question[:2] for kind, question in batch.questions.items()}
        answers = self.reader(states, batch.attention, asked)
        return scale * captions @ output.image_embeds.T, scale * captions @ wordings.T, answers


def contrastive_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy of `logits` (B B) in both directions; the right pairs are on the diagonal."""
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def create_dual_encoder(
    settings: TextModel, tokenizer: PreTrainedTokenizerFast, resolution: int
) -> VisionTextDualEncoderModel:
    """Randomly initialised encoders for `tokenizer` and pictures of `resolution` px."""
    text = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.max_length,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,  # captions never repeat: there is nothing to overfit
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = ConvNextConfig(
        num_stages=len(settings.picture_widths),
        hidden_sizes=list(settings.picture_widths),
        depths=list(settings.picture_depths),
        image_size=resolution,
        hidden_size=settings.picture_widths[-1],  # the dual encoder asks for the pooled width under this name
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=settings.width)
    return VisionTextDualEncoderModel(config)


class TextStage(Stage[TextRecipe, TextTeacher]):
    """Teaches the text encoder to read; the picture encoder is saved too, for the miniature's CLIP score."""

    recipe_type = TextRecipe

    def __init__(self, recipe: TextRecipe, context: Context):
        super().__init__(recipe, context)
        if len(self.local_indices(0)) % 2:
            raise RecipeError("the text stage needs an even batch on every process: a scene and its twin go together")
        self.source = SceneSource(recipe.data)
        self.heldout = SceneSource(recipe.data.validation(HELDOUT_COUNT))
        self.heldout_scenes = [self.heldout.scene(index) for index in range(HELDOUT_COUNT)]  # fails now or never
        self.nouns = recipe.data.nouns or tuple(noun.name for noun in NOUNS)
        captions = (self.source.caption(i, 0) for i in range(min(recipe.tokenizer_captions, len(self.source))))
        self.tokenizer = train_tokenizer(captions, recipe.vocabulary_size, recipe.model.max_length)
        encoder = create_dual_encoder(recipe.model, self.tokenizer, recipe.data.resolution)
        answers = {str(kind): len(given) for kind, given in choices(self.nouns).items()}
        reader = Reader(recipe.model.width, len(subjects(self.nouns)), answers, recipe.model.heads)
        self.model = TextTeacher(encoder, reader).to(context.device)

    def _batch(self, indices: Sequence[int], variant: int) -> Batch:
        """The scenes of `indices` and their twins, alternating."""
        scenes, captions, wordings = [], [], []
        for index in indices:
            for scene in (self.source.scene(index), self.source.twin(index)):
                scenes.append(scene)
                captions.append(self.source.describe(scene, 2 * variant, index))
                wordings.append(self.source.describe(scene, 2 * variant + 1, index))
        device = self.context.device
        pictures = to_tensor([self.source.render(scene) for scene in scenes]).to(device)
        ids, attention = self._tokenize(captions + wordings)
        return Batch(
            scenes,
            pictures.contiguous(memory_format=torch.channels_last),
            ids,
            attention,
            self._questions(scenes * 2),
        )

    def _tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both B N."""
        tokens = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.recipe.model.max_length, return_tensors="pt"
        )
        return tokens["input_ids"].to(self.context.device), tokens["attention_mask"].to(self.context.device)

    def _questions(self, scenes: Sequence[Scene]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        device = self.context.device
        encoded = encode_questions(scenes, self.nouns)
        return {kind: (a.to(device), b.to(device), c.to(device)) for kind, (a, b, c) in encoded.items()}

    def batch(self, step: int) -> Batch:
        """Half a batch of scenes, and their twins."""
        numbers = self.local_indices(step)[::2]
        count = len(self.source) - VALIDATION_COUNT if len(self.source) > 2 * VALIDATION_COUNT else len(self.source)
        batch = self._batch([number // 2 % count for number in numbers], variant=1 + step)
        done = step / (self.recipe.train.steps * self.rounds)
        return replace(batch, noise=self.recipe.state_noise * (1 - done))

    def _attention(self) -> AbstractContextManager[Any]:
        """Plain attention on the CPU, where the backward pass of the fused kernel is several times slower."""
        return sdpa_kernel(SDPBackend.MATH) if self.context.device.type == "cpu" else nullcontext()

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """CLIP's symmetric cross-entropy with pictures and wordings, over the pairs of this process, and questions.

        The question loss is the sum over all kinds of question, each a mean over its questions.
        """
        with self._attention():
            pictures, wordings, answers = model(batch)
        picture, wording = contrastive_loss(pictures.float()), contrastive_loss(wordings.float())
        asked = [answer_loss(logits, batch.questions[kind][2]) for kind, logits in answers.items()]
        questions = torch.stack(asked).sum()
        loss = picture + wording + self.recipe.questions * questions
        return {"loss": loss, "picture": picture, "wording": wording, "questions": questions}

    def _validation(self) -> Batch:
        start = max(len(self.source) - VALIDATION_COUNT, 0)
        return self._batch(range(start, len(self.source)), variant=0)

    @torch.no_grad()
    def metrics(self, model: TextTeacher) -> dict[str, float]:
        """How often captions find their match, and questions about held-out compositions are answered right.

        `<picture or wording>_retrieval` and `_twin`: the share of captions that find their picture or second wording
        among all, or prefer it to the twin's (chance: 1 in 256, and 0.5). `answers_<kind>`: the share of right answers.
        """
        measures = {}
        found = model(self._validation())[:2]
        for name, logits in zip(("picture", "wording"), found, strict=True):
            targets = torch.arange(len(logits), device=logits.device)
            twin = logits.gather(1, (targets ^ 1)[:, None])[:, 0]
            measures[f"{name}_retrieval"] = (logits.argmax(dim=1) == targets).float().mean().item()
            measures[f"{name}_twin"] = (logits.diagonal() > twin).float().mean().item()
        ids, attention = self._tokenize([self.heldout.caption(index, 0) for index in range(HELDOUT_COUNT)])
        questions = self._questions(self.heldout_scenes)
        states = unit_rms(model.encoder.text_model(input_ids=ids, attention_mask=attention).last_hidden_state)
        answers = model.reader(states, attention, {kind: question[:2] for kind, question in questions.items()})
        for kind, logits in answers.items():
            measures[f"answers_{kind}"] = right_answers(logits, questions[kind][2]).float().mean().item()
        return measures

    @torch.no_grad()
    def sample_grid(self, model: TextTeacher) -> Image.Image:
        """Pictures, each above the caption of the validation set that the model finds for it."""
        batch = self._validation()
        best = model(batch)[0].argmax(dim=0)[:24]
        captions = self.tokenizer.batch_decode(batch.ids[best], skip_special_tokens=True)
        return contact_sheet(to_uint8(batch.pictures[:24]), captions, columns=8)

    def save(self, model: TextTeacher, folder: Path) -> None:
        """Writes the dual encoder, with `text_encoder/` and `tokenizer/` beside it as a pipeline needs them."""
        model.encoder.save_pretrained(folder)
        model.encoder.text_model.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
