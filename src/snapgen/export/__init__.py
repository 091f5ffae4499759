"""Export: a model as a bundle for another runtime, converted, measured against torch, and described."""
