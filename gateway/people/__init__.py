"""People as a backend with capacity: their queues, who may take what, when they work, and how long they will take."""
