"""Measurement through the public interface: recall, speed, and hnswlib beside us (`python -m corenn.bench.core`)."""
