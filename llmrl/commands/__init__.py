"""What users type: one file a command or group of commands."""
