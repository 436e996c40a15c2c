"""The ways that nearly every request takes; what is odd takes the general ones, which decide what is right."""
