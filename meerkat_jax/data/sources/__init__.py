"""Public data sets as they are published, and a user's own: annotations to planned examples."""
