"""Tests against real PostgreSQL, Redis and S3-compatible servers on loopback: `make test-services`."""
