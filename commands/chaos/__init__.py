"""The command `selftest chaos`: the daemon as a child process, everything that can go wrong, and a judge at the end."""
