"""`edgemt doctor`: what this machine has, what runs on it, what is missing, and the command that cures it."""
