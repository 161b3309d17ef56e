"""What a program will need on machines that are not here."""
