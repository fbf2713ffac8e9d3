"""The lab: a procedural task, its measured problems, and the small base model that is trained on it."""
