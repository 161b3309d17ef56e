"""Public data sets as they are published, and a user's own: annotation files to planned examples."""
