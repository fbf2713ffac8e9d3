"""What an editor needs to know of recipes: the JSON Schema of whatever is installed."""
