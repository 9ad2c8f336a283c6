"""Does the forecast come true? Fine-tunes of real models and of worlds, measured against what was said before."""
