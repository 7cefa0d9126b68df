"""Fuzzing of every reader: valid files, mutations of them, the functions that read them, and the processes that do."""
