"""Checkpoints on disk: read strictly, written whole or not at all. Nothing in a checkpoint is ever executed."""
