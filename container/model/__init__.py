"""A model as code: archive -> Handler, and a batch through it."""
