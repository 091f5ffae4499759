"""From prompts to pictures: the diffusers pipeline, the bundled models, strict loading."""
