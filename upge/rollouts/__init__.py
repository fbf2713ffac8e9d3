"""From problems to scored trajectories, and the batches made of them."""
