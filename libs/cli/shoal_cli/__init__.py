"""The shoal command, the embedded system and the local cluster."""
