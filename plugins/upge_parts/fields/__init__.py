"""Fields of the batch: numbers of other models, rewards and data, which parts read by the names that a recipe gives."""
