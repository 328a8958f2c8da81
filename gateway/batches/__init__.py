"""How are files kept, and batches of requests worked off? On disk, whole after a crash, and behind everybody else."""
