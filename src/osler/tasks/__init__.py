"""What is asked of a case: one kind of task a file, with its labels, head, loss, answer and score."""
