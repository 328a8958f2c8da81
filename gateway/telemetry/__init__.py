"""What can an operator see of the gateway? The Prometheus page, and the log lines."""
