"""The log and what is made of it: event logs, feeds to fill them (simulated and recorded), and point-in-time training rows."""
