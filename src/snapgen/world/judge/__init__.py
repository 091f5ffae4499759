"""The judges of the embedded world: they read a picture back into a scene and score it by GenEval's rules."""
