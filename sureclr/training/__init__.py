"""Pretraining: the step, the loop around it, the run folder, and how a run is opened."""
