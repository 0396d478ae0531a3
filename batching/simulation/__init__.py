"""Traffic that never was, batched by the policies that batch what is: for choosing among them, and testing them."""
