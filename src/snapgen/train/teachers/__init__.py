"""The frozen teachers of distillation, and their stored targets."""
