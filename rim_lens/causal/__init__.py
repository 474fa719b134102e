"""What a change inside the model does to its answers: runs with changed heads or neurons, against the run as it is."""
