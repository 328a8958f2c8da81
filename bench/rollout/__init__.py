"""How soon is a bad canary found out, and how often a good one wronged? Rollouts with a known truth, by simulation."""
