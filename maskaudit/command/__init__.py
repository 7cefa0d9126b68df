"""What the command line does beyond its options: supervise the work, own the terminal, deliver results."""
