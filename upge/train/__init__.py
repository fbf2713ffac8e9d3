"""A run: problems → trajectories → credit → count → weigh → step, and the folder that it leaves."""
