"""Containers, Kubernetes and services of the system, and the programs that check them."""
