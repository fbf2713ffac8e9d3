"""Several processes at one run: what they agree on, and how a model in training lies over them."""
