"""What does a configuration file say? Its structs, reading it, and every fault with its place."""
