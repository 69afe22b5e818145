"""What other settings would cost: the planner, which is calibrated on measured steps."""
