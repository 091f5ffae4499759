"""The embedded world: captioned emoji scenes with exact ground truth, in GenEval's six categories."""
