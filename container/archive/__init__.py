"""A model on disk: what an archive may be, described as one Manifest."""
