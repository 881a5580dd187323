"""What a run does for the machine it is on: processes, sharding, speed, signals."""
