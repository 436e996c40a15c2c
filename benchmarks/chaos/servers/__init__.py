"""The stores that workers talk to while faults are injected: a primary with its replica, and a cluster."""
