"""Products of up to eight columns whose weights go from memory into the registers of the matrix units at once."""
