"""What reads a picture of the embedded world back into a scene, and judges it by GenEval's rules."""
