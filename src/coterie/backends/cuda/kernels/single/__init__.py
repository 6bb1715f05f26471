"""Products of few columns, whose weights a program asks for all at once."""
