"""What runs and evaluations leave behind: written so that it lasts, read again, counted and compared."""
