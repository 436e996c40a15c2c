"""The actions of `millstream replay`: what each does, and its arguments."""
