"""How fast, how cheaply and how surely rank requests are answered, by each front end and by peers."""
