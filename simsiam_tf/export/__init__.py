"""The encoder, out of training: as a SavedModel, and in the formats of other runtimes."""
