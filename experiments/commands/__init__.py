"""The commands of `pdv`, one a module. Each checks all its options before it starts any work."""
