"""The `text` stage: the miniature's own text encoder, trained against pictures as CLIP was, then frozen.

A CLIP text transformer and a small ConvNeXt learn to match captions with scenes. Every scene comes with its
twin, which differs in one stated attribute (a colour, a count, who is on the left), so that telling objects
apart is not enough: word order and binding must enter the states that the UNet reads later. A second wording
of every scene is matched with the first: synonyms come together, and which noun was said stays told apart even
where the small picture encoder still sees little more than colours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    ConvNextConfig,
    PreTrainedTokenizerFast,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from snapgen.config import Recipe, RecipeError, Settings
from snapgen.data.pictures import to_tensor, to_uint8
from snapgen.data.preview import contact_sheet
from snapgen.data.scenes import SceneSettings, SceneSource
from snapgen.text.tokenizer import train_tokenizer
from snapgen.train.stage import Context, Stage

VALIDATION_COUNT = 128  # scenes, from the far end of the source; as many twins join them


class TextModel(Settings):
    """Shape of the text transformer and of the picture encoder that trains it."""

    width: int = Field(default=256, gt=0)  # of the token states
    layers: int = Field(default=4, ge=2)
    heads: int = Field(default=4, gt=0)
    max_length: int = Field(default=32, gt=4)  # tokens
    picture_widths: tuple[int, ...] = (48, 96, 192)  # ConvNeXt, stride 4 and then 2 each
    picture_depths: tuple[int, ...] = (1, 1, 2)


class TextRecipe(Recipe):
    """Settings of the `text` stage."""

    stage: Literal["text"]
    model: TextModel = TextModel()
    data: SceneSettings  # its resolution is what the picture encoder sees
    tokenizer_captions: int = Field(default=20_000, gt=0)  # captions that the tokenizer is trained on
    vocabulary_size: int = Field(default=1000, ge=100)  # at most


class DualEncoder(nn.Module):
    """The two encoders with a forward pass that gives the logits of all pairs.

    Token embeddings start at unit variance, not at CLIP's 0.02: the residual stream then still says which word
    it began with when the UNet reads it, instead of drowning it in what the layers add.
    """

    def __init__(self, encoder: VisionTextDualEncoderModel):
        super().__init__()
        self.encoder = encoder
        embeddings = encoder.text_model.embeddings
        nn.init.normal_(embeddings.token_embedding.weight, std=1.0)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.3)

    def forward(self, pictures: Tensor, ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Temperature-scaled cosine similarities, captions x pictures and captions x second wordings (both B B).

        pictures: B 3 H W; ids, attention: 2B N, first all captions and then their second wordings.
        """
        output = self.encoder(input_ids=ids, pixel_values=pictures, attention_mask=attention)
        captions, wordings = output.text_embeds.chunk(2)
        scale = self.encoder.logit_scale.exp()
        return scale * captions @ output.image_embeds.T, scale * captions @ wordings.T


def contrastive_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy of both directions of `logits` (B B), whose diagonal is right."""
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def create_dual_encoder(settings: TextModel, tokenizer: PreTrainedTokenizerFast, resolution: int) -> DualEncoder:
    """Randomly initialised encoders for `tokenizer` and pictures of `resolution` px."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.max_length,
        projection_dim=settings.width,
        hidden_act="gelu",
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
    return DualEncoder(VisionTextDualEncoderModel(config))


class TextStage(Stage[TextRecipe, DualEncoder]):
    """Trains the text encoder contrastively; the picture encoder is saved too, for the miniature's CLIP score."""

    recipe_type = TextRecipe

    def __init__(self, recipe: TextRecipe, context: Context):
        super().__init__(recipe, context)
        if recipe.train.batch_size // recipe.train.gradient_accumulation // context.world % 2:
            raise RecipeError("the text stage needs an even batch on every process: a scene and its twin go together")
        self.source = SceneSource(recipe.data)
        captions = (self.source.caption(i, 0) for i in range(min(recipe.tokenizer_captions, len(self.source))))
        self.tokenizer = train_tokenizer(captions, recipe.vocabulary_size, recipe.model.max_length)
        self.model = create_dual_encoder(recipe.model, self.tokenizer, recipe.data.resolution).to(context.device)

    def _pairs(self, indices: list[int], variant: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures 2B 3 H W of scenes and their twins, alternating; token ids and attention mask 4B N.

        The first half of the tokens are captions, the second other wordings of the same.
        """
        pictures, captions, wordings = [], [], []
        for index in indices:
            for scene in (self.source.scene(index), self.source.twin(index)):
                pictures.append(self.source.render(scene))
                captions.append(self.source.describe(scene, 2 * variant, index))
                wordings.append(self.source.describe(scene, 2 * variant + 1, index))
        tokens = self.tokenizer(
            captions + wordings,
            padding=True,
            truncation=True,
            max_length=self.recipe.model.max_length,
            return_tensors="pt",
        )
        device = self.context.device
        tensors = to_tensor(pictures).to(device).contiguous(memory_format=torch.channels_last)
        return tensors, tokens["input_ids"].to(device), tokens["attention_mask"].to(device)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Half as many scenes as the batch has pairs, and their twins."""
        numbers = self.local_indices(step)[::2]
        count = len(self.source) - VALIDATION_COUNT if len(self.source) > 2 * VALIDATION_COUNT else len(self.source)
        return self._pairs([number // 2 % count for number in numbers], variant=1 + step)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """CLIP's symmetric cross-entropy over the pairs of this process, with pictures and with wordings, added."""
        picture, wording = (contrastive_loss(logits.float()) for logits in model(*batch))
        return {"loss": picture + wording, "picture": picture, "wording": wording}

    def _validation(self) -> tuple[Tensor, Tensor, Tensor]:
        start = max(len(self.source) - VALIDATION_COUNT, 0)
        return self._pairs(list(range(start, len(self.source))), variant=0)

    @torch.no_grad()
    def metrics(self, model: DualEncoder) -> dict[str, float]:
        """Share of captions that find their picture or second wording among all, or prefer it to the twin's.

        Chance is 1 in 256, and 0.5.
        """
        measures = {}
        for name, logits in zip(("picture", "wording"), model(*self._validation()), strict=True):
            targets = torch.arange(len(logits), device=logits.device)
            twin = logits.gather(1, (targets ^ 1)[:, None])[:, 0]
            measures[f"{name}_retrieval"] = (logits.argmax(dim=1) == targets).float().mean().item()
            measures[f"{name}_twin"] = (logits.diagonal() > twin).float().mean().item()
        return measures

    @torch.no_grad()
    def draw(self, model: DualEncoder) -> Image.Image:
        """Pictures over the caption that the model finds for each among all of the validation set."""
        pictures, ids, attention = self._validation()
        best = model(pictures, ids, attention)[0].argmax(dim=0)[:24]
        captions = self.tokenizer.batch_decode(ids[best], skip_special_tokens=True)
        return contact_sheet(to_uint8(pictures[:24]), captions, columns=8)

    def save(self, model: DualEncoder, folder: Path) -> None:
        """The dual encoder, and beside it `text_encoder/` and `tokenizer/` as a pipeline needs them."""
        model.encoder.save_pretrained(folder)
        model.encoder.text_model.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
