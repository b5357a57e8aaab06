"""How each shipped checkpoint was made, and what it gives. Lessons load the results; they never import from here."""
