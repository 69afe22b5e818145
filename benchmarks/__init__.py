"""What things cost, each beside what it would cost otherwise: ratios in one run (`make bench`)."""
