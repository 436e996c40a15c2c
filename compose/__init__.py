"""How the parts are put together: the command, settings, the local stack, the demo, and files for Docker."""
