"""Why: maps of what an answer rests on, one method a file, each tested like the others."""
