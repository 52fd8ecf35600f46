"""Export of a trained encoder: as a SavedModel, and in the formats of other runtimes."""
