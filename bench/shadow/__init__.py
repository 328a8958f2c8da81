"""What does shadowing cost whoever is shadowed? ``python -m bench.shadow`` says, with targets at their worst."""
