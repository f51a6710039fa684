"""The command line and the daemon it starts: the only room that puts the pieces together."""
