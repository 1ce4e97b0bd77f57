"""The command line, one file a group of commands. Everything heavy is imported by the command that needs it."""
